"""Results as a page that somebody who knows nothing of them understands.

`read_results` reads and checks the files, `page` says in a neutral form what is to be
on the page, and `html` and `markdown` write it.
"""

from centermerge_jax.report.results import Result as Result
from centermerge_jax.report.results import read_results as read_results
from centermerge_jax.report.writing import check_output as check_output
from centermerge_jax.report.writing import write_report as write_report
