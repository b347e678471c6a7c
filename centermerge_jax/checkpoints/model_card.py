"""What a merged hub folder says of itself: its README and the type in its config."""

import json
from collections.abc import Mapping
from typing import Any

_TYPES = ("torch_dtype", "dtype")


def model_card(name: str, manifest: Mapping[str, Any]) -> str:
    """The text of `README.md` for a merged model, with the recipe to repeat it.

    Args:
      name: What the model is called.
      manifest: What `describe` returned.

    Example:
      >>> inputs = {"cars": {"path": "models/cars", "leaves": 3}}
      >>> settings = {"rank": 0.08}
      >>> record = {"method": "cart", "hyperparameters": settings, "inputs": inputs}
      >>> print(model_card("merged", record).splitlines()[7])
      # merged
    """
    settings = {"method": manifest["method"], **_as_recipe(manifest["hyperparameters"])}
    inputs = dict(manifest["inputs"])
    base = inputs.pop("base", None)
    lines = [
        "---",
        "tags:",
        "- merge",
        "- centermerge_jax",
        "library_name: centermerge_jax",
        "---",
        "",
        f"# {name}",
        "",
        f"Merged by `{manifest['method']}` from {len(inputs)} fine-tuned models with",
        "centermerge_jax; `centermerge.json` records every input and its digests.",
        "",
        "| model | from |",
        "| --- | --- |",
        *(f"| {task} | {model['path']} |" for task, model in inputs.items()),
        *([f"| *base* | {base['path']} |"] if base else []),
        "",
        "Recipe:",
        "",
        "```yaml",
        *(f"{key}: {json.dumps(value)}" for key, value in settings.items()),
        *([f"base: {json.dumps(base['path'])}"] if base else []),
        "experts:",
        *(
            f"  {json.dumps(task)}: {json.dumps(model['path'])}"
            for task, model in inputs.items()
        ),
        "```",
        "",
    ]
    return "\n".join(lines)


def _as_recipe(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters in the form that a recipe file has."""
    found = dict(settings)
    if "overrides" in found:
        found["overrides"] = [
            {key: value for key, value in override.items() if value is not None}
            for override in found["overrides"]
        ]
    if "names" in found:
        found["names"] = dict(given.split("=", 1) for given in found["names"])
    return found


def retyped(name: str, content: bytes, dtype: str | None) -> bytes:
    """A configuration file's bytes, with the type of the weights as they now are.

    Args:
      name: Of the file; only `config.json` is looked into.
      content: Its bytes.
      dtype: The new type, None if it did not change.
    """
    if dtype is None or name != "config.json":
        return content
    try:
        config = json.loads(content)
    except ValueError:  # not ours to judge
        return content
    stated = [key for key in _TYPES if isinstance(config.get(key), str)]
    if not stated:
        return content
    config |= dict.fromkeys(stated, dtype)
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
