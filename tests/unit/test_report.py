"""Reports: what a page says is what the results say, and it needs nothing else."""

import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from study_results import ROWS, TASKS, analysis, comparison, mean, sweep

from centermerge_jax.cli import main
from centermerge_jax.errors import DataError
from centermerge_jax.report import read_results, write_report

VOID = {"meta", "link", "br", "img", "hr", "input"}
RESULTS = {"comparison": comparison, "analysis": analysis, "sweep": sweep}


class Reader(HTMLParser):
    """A page as a list of elements, refusing tags that do not match."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.texts = [], [], []
        self.rows = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        if {"style", "script"} & set(self.open):
            return
        self.texts.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


def written(folder, **results):
    for name, content in results.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def report(folder, **results):
    """The page of results, as written and as read."""
    found, notes = read_results([written(folder, **results)])
    assert not notes
    output = folder / "report.html"
    write_report(found, output)
    text = output.read_text(encoding="utf-8")
    return text, Reader(text)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    made = {name: make() for name, make in RESULTS.items()}
    return report(tmp_path_factory.mktemp("study"), **made)


def test_the_page_is_whole_and_needs_nothing_else(whole):
    text, page = whole
    assert text.startswith("<!DOCTYPE html>")
    for tag, attrs in page.elements:
        for key in ("src", "href", "xlink:href", "srcset", "action", "data"):
            if (value := attrs.get(key)) is not None:
                assert value.startswith(("#", "data:")), (tag, key, value)
        assert not [key for key in attrs if key.startswith("on")]
    styles = "".join(re.findall(r"<style>(.*?)</style>", text, re.DOTALL))
    assert "@import" not in styles
    assert "url(" not in styles
    (policy,) = [
        x["content"]
        for x in page.all("meta")
        if x.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none';")


def test_identifiers_are_unique_and_links_lead_somewhere(whole):
    _, page = whole
    identifiers = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(identifiers) == len(set(identifiers))
    for _, attrs in page.elements:
        for key in ("href", "xlink:href", "aria-labelledby"):
            value = attrs.get(key, "data:").removeprefix("#")
            assert value.startswith("data:") or value in identifiers, value


def test_the_page_is_accessible(whole):
    _, page = whole
    assert page.all("html") == [{"lang": "en"}]
    assert [len(page.all(tag)) for tag in ("h1", "main")] == [1, 1]
    for attrs in page.all("svg"):
        assert attrs["role"] == "img"
        assert len(attrs["aria-label"]) > 20
    for attrs in page.all("th"):
        assert attrs["scope"] in ("col", "row")
    captions = ("figure", "figcaption"), ("table", "caption")
    for outer, inner in captions:
        assert len(page.all(outer)) == len(page.all(inner)) > 0
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))


def test_every_figure_is_there_in_the_colours_of_either_ground(whole):
    text, page = whole
    names = [attrs["id"] for attrs in page.all("figure")]
    assert names == [
        "comparison-accuracy",
        "comparison-gaps",
        "comparison-rank-curve",
        "comparison-scale-rank-cart",
        "comparison-scale-rank-truncated-task-arithmetic",
        "comparison-cost",
        "analysis-interference",
        "analysis-trade-off",
        "analysis-spectra",
        "analysis-alignment",
        "analysis-cosine",
        "sweep-scale-rank",
    ]
    assert text.count("var(--ink)") > 100
    assert "@media screen and (prefers-color-scheme: dark)" in text
    assert "@media print" in text


def test_the_summary_says_the_numbers(whole):
    _, page = whole
    accuracy = {name: 100 * mean(row[0]) for name, row in ROWS.items()}
    for said in (
        "6 merging methods on 4 tasks, with 2 seeds of fine-tuning.",
        f"The most accurate merge is RegMean with {accuracy['regmean']:.1f} ± 1.1 %",
        f"CART has {accuracy['cart']:.1f} ± 1.1 % and is 3rd of 6.",
        f"CART is {accuracy['joint'] - accuracy['cart']:.1f} ± 1.2 points below joint",
        f"joint training on all tasks ({accuracy['joint']:.1f} %)",
        "Of 3 claims: 1 shown, 1 contradicted and 1 open.",
        "The top 8 % of singular directions hold 84.5 % of the energy of centred",
        "Centred, tasks interfere more at all 4 ranks that were measured, with I(k)",
        "normalised over the top k: 2.81 centred and 2.43 not, at rank 8 %.",
        "less at 1 and more at 3 of 4 ranks that were measured, with I(k) normalised",
        "less at all 4 ranks that were measured, with I(k) not normalised",
        "The mean cosine between two tasks is \u22120.33 centred and 0.04 not centred.",
        "11 settings of CART; the best on validation examples is rank 4 %, scale 4,",
    ):
        assert said in page.text, said


def test_the_table_has_every_accuracy_the_best_in_bold_and_cart_marked(whole):
    text, page = whole
    start = next(
        i
        for i, row in enumerate(page.rows)
        if row[:3] == ["method", "mean", "of experts"]
    )
    assert page.rows[start] == ["method", "mean", "of experts", *TASKS]
    names = [row[0] for row in page.rows[start + 1 : start + 10]]
    assert names[:3] == ["pretrained", "experts", "joint"]
    assert names[3:] == [
        *("RegMean", "TSV-M", "▸ CART", "TIES"),
        *("task arithmetic", "weight average"),
    ]
    cart = page.rows[start + 1 + names.index("▸ CART")]
    assert [float(x.split()[0]) for x in cart[3:]] == [86.7, 80.4, 92.7, 91.6]
    assert [x.split()[1] for x in cart[3:]] == ["±"] * 4
    assert text.count('<tr class="marked">') == 3
    bold = re.findall(r"<td[^>]*><strong>([\d.]+)</strong>", text)
    assert bold[:6] == ["91.1", "98.4", "93.9", "82.3", "94.0", "94.4"]
    assert text.count('data-order="0.867"') == 2  # the test of the search has it too


def test_claims_lead_to_their_figures(whole):
    text, _ = whole
    claims = re.findall(r'<li class="([a-z-]+)"><strong.*?</li>', text, re.DOTALL)
    assert claims == ["shown", "contradicted", "open"]
    links = re.findall(r'<a href="#([^"]*)">See the figure', text)
    assert links == ["comparison-rank-curve", "analysis-interference"]


def test_it_says_how_to_repeat_it(whole, tmp_path):
    _, page = whole
    for said in (
        "python -m experiments.study vision",
        "centermerge analyse 'a folder/mnist' -o analysis",
        "centermerge_jax 0.1.0, jax 0.10.2",
        "2026-11-23T09:19:02+00:00",
    ):
        assert said in page.text


HOSTILE = '<script>alert("1")</script>&amp;\'"$\\frac$_'


def hostile(value):
    """The same object with every text in it replaced, but for what it is found by."""
    if isinstance(value, dict):
        fixed = ("kind", "verdict", "origins", "figure")
        return {
            (f"{HOSTILE}{key}" if key in TASKS or key.startswith("blocks") else key): (
                item if key in fixed else hostile(item)
            )
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [hostile(item) for item in value]
    return f"{HOSTILE}{value}" if isinstance(value, str) else value


@pytest.mark.parametrize("kind", RESULTS)
def test_names_are_never_markup(tmp_path, kind):
    text, page = report(tmp_path, result=hostile(RESULTS[kind]()))
    assert text.count("<script>") == 1  # ours
    assert HOSTILE in "".join(page.texts)
    assert HOSTILE not in text
    found, _ = read_results([tmp_path / "result.json"])
    write_report(found, tmp_path / "report.md")
    written = (tmp_path / "report.md").read_text()
    outside = "\n".join(x for x in written.splitlines() if not x.startswith("    "))
    assert "<script" not in outside.replace("\\<", "")


def test_figures_as_files(tmp_path, capsys):
    folder = written(tmp_path, sweep=sweep())
    output, figures = tmp_path / "page.html", tmp_path / "figures"
    main(["report", str(folder), "-o", str(output), "--figures", str(figures)])
    assert capsys.readouterr().out == f"wrote {output} and {figures}: 1 result\n"
    names = sorted(path.name for path in figures.iterdir())
    assert names == ["sweep-scale-rank.png", "sweep-scale-rank.svg"]
    assert {path.name for path in tmp_path.iterdir()} == {
        *("sweep.json", "page.html", "figures")
    }


def test_markdown_with_pictures_beside_it(tmp_path):
    results, _ = read_results([written(tmp_path, b=comparison(), a=analysis())])
    output = tmp_path / "a study.md"
    assert write_report(results, output) == [output, tmp_path / "a study-figures"]
    text = output.read_text()
    links = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert links[0] == "a%20study-figures/comparison-accuracy.png"
    names = {path.name for path in (tmp_path / "a study-figures").iterdir()}
    assert {Path(link).name for link in links} == names
    assert "| **▸ CART** | 87.8 ± 1.1 | 94.8 | 86.7 ± 2.1 | 80.4 ± 2.5 |" in text
    assert "| **93.9** ± 1.5 |" in text
    assert "| contradicted |" in text
    assert "from the files below, by `centermerge report`. The commands" in text
    tables = [
        [line.count(" | ") for line in block.splitlines()]
        for block in text.split("\n\n")
        if block.startswith("| ")
    ]
    assert len(tables) == 5
    assert all(len(set(table)) == 1 for table in tables)


def test_results_are_found_at_any_depth_and_each_once(tmp_path, capsys):
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    written(tmp_path, sweep=sweep())
    written(deep, comparison=comparison())
    (deep / "manifest.json").write_text('{"format": 1}')
    (deep / "notes.txt").write_text("no JSON")
    (deep / "loop").symlink_to(tmp_path)
    results, notes = read_results([tmp_path, deep / "comparison.json", tmp_path])
    assert [one.kind for one in results] == ["sweep", "comparison"]
    assert notes == [f"{deep / 'manifest.json'} is no result: it has no kind"] * 2


def test_two_results_of_a_kind_do_not_share_names_and_claims_find_the_nearest(tmp_path):
    for name in ("text", "vision"):
        (tmp_path / name).mkdir()
        written(tmp_path / name, comparison=comparison(), analysis=analysis())
    given = [tmp_path / name for name in ("vision", "text")]
    results, _ = read_results(given)
    assert [one.path.parent for one in results] == [
        folder for folder in given for _ in range(2)
    ]
    assert [one.kind for one in results] == ["comparison", "analysis"] * 2
    write_report(results, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    page = Reader(text)
    identifiers = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(identifiers) == len(set(identifiers))
    links = re.findall(r'<a href="#([^"]*)">See the figure', text)
    assert links == [
        *("comparison-1-rank-curve", "analysis-1-interference"),
        *("comparison-2-rank-curve", "analysis-2-interference"),
    ]
    assert "<h1>Merging fine-tuned models: results</h1>" in text
    (first,) = re.findall(r"<table>.*?</table>", text, re.DOTALL)[:1]
    assert "All claims" in first
    for claim in comparison()["claims"]:
        assert claim["claim"] in first
        assert first.count(f">{claim['verdict']}<") >= 2


def test_what_is_not_known_is_left_out(tmp_path):
    given = comparison()
    for key in ("title", "seeds", "curves", "claims", "command", "date", "versions"):
        del given[key]
    for name in ("joint", "experts", "pretrained", "cart"):
        del given["methods"][name]
    for row in given["methods"].values():
        for key in [key for key in row if key not in ("accuracy", "mean")]:
            del row[key]
    _, page = report(tmp_path, result=given)
    assert [attrs["id"] for attrs in page.all("figure")] == ["comparison-accuracy"]
    assert "5 merging methods on 4 tasks." in page.text
    assert "None" not in page.text
    assert "nan" not in page.text


def test_an_analysis_may_have_a_title(tmp_path):
    _, page = report(tmp_path, result=analysis() | {"title": "Vectors of seed 7"})
    assert "Vectors of seed 7" in page.text
    written(tmp_path, result=analysis() | {"title": 7})
    with pytest.raises(DataError, match="title"):
        read_results([tmp_path])


def test_a_setting_at_an_edge_of_what_was_tried_is_marked(tmp_path):
    content = RESULTS["comparison"]()
    for run in content["methods"]["cart"]["runs"]:
        run["setting"] = {"rank": 0.08, "scale": 4.0}
        run["points"] = [
            {"setting": {"rank": rank, "scale": scale}}
            for rank in (0.04, 0.08, 0.16)
            for scale in (2.0, 4.0)
        ]
    text, _ = report(tmp_path, comparison=content)
    assert "rank 8 %, scale 4*" in text


def test_one_expert_around_its_base(tmp_path):
    given = analysis()
    given["origins"] = ["base"]
    del given["mean_over_matrices"]["mean"]
    for matrix in given["matrices"].values():
        del matrix["mean"]
    _, page = report(tmp_path, result=given)
    assert "Singular values of not centred task vectors" in page.text


def test_a_search_of_other_settings_has_a_table_alone(tmp_path):
    given = sweep()
    for i, point in enumerate(given["points"]):
        point["setting"] = {"density": 0.1 * i, "scale": 1}
    given["test"] = None
    _, page = report(tmp_path, result=given)
    assert not page.all("figure")
    assert ["density 0.5, scale 1", "89.0", *["89.0"] * 4, "1.9 s"] in page.rows
