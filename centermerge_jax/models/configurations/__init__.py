"""Shapes of networks, from leaves and a `config.json`, and back to such a file.

* `build`: the configuration of a model of any kind, by `vision` and `language`.
* `reader`: what a file says, held against the leaves.
* `hugging_face`: the file that Hugging Face's classes want.
"""
