"""A merged CLIP encoder goes back to open_clip: the whole chain, through files.

1. open_clip writes the state dicts of two experts.
2. They are converted to our names; back again, the bytes are those that came in.
3. `centermerge merge` merges them, and the merge is exported.
4. open_clip loads that strictly; its features and logits must be those that we
   compute from the merge before the export.

Run by `make parity` in the project's environment, from the repository's root:

  python third_party/parity/roundtrip.py --peer third_party/.venv-openclip/bin/python
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import goldens
import jax
import jax.numpy as jnp
import numpy as np
import weights
from safetensors.numpy import load_file

from centermerge_jax.convert import convert, load_model
from centermerge_jax.models import clip, heads

SCRIPT = Path(__file__).with_name("openclip_outputs.py")
CENTERMERGE = [
    sys.executable, "-c", "from centermerge_jax.cli import main; main()",
]  # fmt: skip
EXPERTS = 3  # of two, CART is the plain average
TOLERANCE = 1e-4


def main() -> None:
    """Goes through the chain in a temporary folder: 6 GB for ViT-B/32."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, required=True, help="open_clip's Python")
    parser.add_argument("--model", default="openclip_vit_b32")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        goldens.finish(go(Path(folder), chosen.peer, chosen.model))


def go(folder: Path, peer: Path, model: str) -> list[str]:
    """All steps; what is wrong, as messages."""
    theirs = [str(peer), str(SCRIPT), "--model", model]
    run(*theirs, "save", str(folder), "--experts", str(EXPERTS))
    names = [f"expert{i}" for i in range(EXPERTS)]
    for name in names:
        convert(folder / f"{name}.safetensors", folder / name, target="flax")
    back = folder / "back.safetensors"
    convert(folder / names[0], back, target="openclip")
    faults = [
        f"{name}: converted there and back, it is another"
        for name in changed(folder / f"{names[0]}.safetensors", back)
    ]
    named = [f"{name}={folder / name}" for name in names]
    merged = folder / "merged"
    settings = ["--rank", "0.08", "--scale", "1.0"]
    run(*CENTERMERGE, "merge", *named, "-o", str(merged), "--quiet", *settings)
    exported = folder / "exported.safetensors"
    convert(merged, exported, target="openclip")
    run(*theirs, "load", str(exported), str(folder / "outputs.npz"))
    with np.load(folder / "outputs.npz") as file:
        reference = dict(file)
    for key, ours in outputs(merged, reference["ids"]).items():
        off = goldens.difference(ours, reference[key])
        print(f"merged and exported: {key} differs by {off:.1e}")
        if not off <= TOLERANCE:
            faults.append(f"{key} differs by {off:.1e}, allowed {TOLERANCE}")
    return faults


def outputs(path: Path, ids: np.ndarray) -> Mapping[str, np.ndarray]:
    """What our CLIP computes from a checkpoint, of the images that open_clip saw."""
    loaded = load_model(path)
    params = jax.tree.map(jnp.asarray, loaded.params)
    images = jnp.asarray(weights.images(2, 224, 224))
    image = clip.image_features(params, images, config=loaded.config)
    text = clip.text_features(params, jnp.asarray(ids), config=loaded.config)
    head = heads.normalised(text).T
    logits = heads.cosine(head, image, logit_scale=params["logit_scale"])
    found = {"image_features": image, "text_features": text, "logits": logits}
    return {name: np.asarray(x) for name, x in found.items()}


def changed(a: Path, b: Path) -> list[str]:
    """Leaves of two files that differ in presence, type, shape or bytes."""
    first, second = load_file(a), load_file(b)
    names = first.keys() ^ second.keys()
    for name in first.keys() & second.keys():
        p, q = first[name], second[name]
        if (p.dtype, p.shape, p.tobytes()) != (q.dtype, q.shape, q.tobytes()):
            names.add(name)
    return sorted(names)


def run(*command: str) -> None:
    """Runs a program, which has to succeed."""
    print("+", *command[1:])
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
