"""Class names and prompt templates of the benchmark's twenty tasks.

They are data, one JSON file for each task, because the published zero-shot heads depend
on every letter of them. Where published lists differ, ours are those of the code that
made the benchmark's checkpoints (Wang et al. 2024, nik-dim/tall_masks), which keeps the
underscores of some sets and, for FER2013, the brackets of a list. Each file says where
it is from.
"""

import functools
import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

from centermerge_jax.errors import DataError, listing


@dataclass(frozen=True)
class TaskPrompts:
    """What the zero-shot head of a task is made of.

    Attributes:
      task: Name of the task in `registry.TASKS`.
      classes: Names of the classes in the order of the labels.
      templates: Texts with one `{}`, the place of the name.
      source: Where both were published.
      licence: Of the source.
      folders: Names of the folders of an image folder in the order of the labels; empty
        where none are usual.
      note: What differs from other published lists.
    """

    task: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    source: str
    licence: str
    folders: tuple[str, ...] = ()
    note: str = ""


@functools.cache
def load_prompts(task: str) -> TaskPrompts:
    """Class names and templates of a task.

    Args:
      task: A name in `registry.SUITES["clip20"]`.

    Raises:
      DataError: There are none for this task.

    Example:
      >>> eurosat = load_prompts("eurosat")
      >>> eurosat.classes[2]
      'brushland or shrubland'
      >>> eurosat.templates[0].replace("{}", eurosat.classes[2])
      'a centered satellite photo of brushland or shrubland.'
    """
    file = resources.files("centermerge_jax.data") / "class_names" / f"{task}.json"
    if not task.isalnum() or not file.is_file():
        raise DataError(f"no class names and templates are known for {task!r}")
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    for field in ("classes", "templates", "folders"):
        content[field] = tuple(content.get(field, ()))
    found = TaskPrompts(**content)
    problems = _faults(found, task)
    if problems:
        raise DataError(listing(f"{{n}} problem{{s}} in {task}.json", problems))
    return found


def class_names(task: str) -> tuple[str, ...]:
    """Names of the classes in the order of the labels.

    Example:
      >>> class_names("renderedsst2")
      ('negative', 'positive')
    """
    return load_prompts(task).classes


def templates(task: str) -> tuple[str, ...]:
    """Texts with one `{}`, the place of the class name.

    Example:
      >>> templates("food101")
      ('a photo of {}, a type of food.',)
    """
    return load_prompts(task).templates


def _faults(found: TaskPrompts, task: str) -> list[str]:
    problems = [] if found.task == task else [f"task: is {found.task!r}"]
    for field in ("classes", "templates", "folders"):
        values = getattr(found, field)
        if len(set(values)) != len(values):
            problems.append(f"{field}: some are there twice")
        problems += [f"{field}: {v!r} is no text" for v in values if not v]
    if not found.classes:
        problems.append("classes: there are none")
    if found.folders and len(found.folders) != len(found.classes):
        problems.append("folders: not as many as classes")
    problems += [
        f"templates: {text!r} does not have one {{}}"
        for text in found.templates
        if text.count("{}") != 1
    ]
    return problems
