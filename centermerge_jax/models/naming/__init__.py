"""Name maps: what public checkpoints call their leaves, and what we call them.

* `table`: `Table` reads a family's leaves into our names and layouts, and writes them
  back; every leaf has to have its line, and every line its leaf.
* `pairs`, `layouts`: what a line says.
* `clip`, `vit`, `text`: the tables of the public families; `flax`: of our own names.
* `matching`: which leaf is which line, and what is wrong.
"""
