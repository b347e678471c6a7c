"""What no shape tells of the network that several checkpoints share.

Heads, activations and the like stand in the `config.json` of a hub folder, or in the
manifest of what `centermerge convert` wrote. A merged model needs them too, and experts
that disagree about them are not of one network, however alike their leaves are.
"""

from collections.abc import Iterator, Mapping

from centermerge_jax.checkpoints import Checkpoint
from centermerge_jax.errors import CheckpointError, listing
from centermerge_jax.models.configurations.reader import Settings
from centermerge_jax.named_models import network_settings

_WORDS = {"head", "heads", "act", "activation", "eps", "epsilon", "gelu", "patch"} | {
    *("rope", "rotary", "window", "softcapping"),
}
_NAMES = {"model_type", "position_embedding_type", "tie_word_embeddings"} | {
    *("attention_bias", "mlp_bias", "scale_attn_weights"),
}


def shared_settings(
    experts: Mapping[str, Checkpoint], keeper: Checkpoint | None
) -> Settings | None:
    """The configuration of a merged model: the keeper's, or the first expert's.

    Args:
      experts: The experts by name.
      keeper: The model whose head, and with it the names of classes, is kept.

    Returns:
      The configuration; None if no model has one.

    Raises:
      CheckpointError: One cannot be read, or experts disagree about the network. What
        says nothing of it (names of classes, dropout, versions) may differ.
    """
    found = {name: network_settings(model) for name, model in experts.items()}
    known = {name: settings for name, settings in found.items() if settings}
    if not known:
        return network_settings(keeper) if keeper else None
    (first, expected), *others = known.items()
    problems = [
        f"{name}: {difference}"
        for name, settings in others
        for difference in _differences(expected, settings)
    ]
    if problems:
        raise CheckpointError(
            listing(
                f"{{n}} difference{{s}} from the configuration of '{first}'",
                problems,
                "The experts have to be of one network; if they are, correct the "
                "config.json (or manifest) that is wrong.",
            )
        )
    return (network_settings(keeper) if keeper else None) or expected


def _differences(expected: Settings, found: Settings, above: str = "") -> Iterator[str]:
    """What both say of the network, and say otherwise."""
    for key in sorted(expected.keys() & found.keys()):
        one, other, name = expected[key], found[key], above + key
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from _differences(one, other, f"{name}.")
        elif one != other and (key in _NAMES or _WORDS & set(key.split("_"))):
            yield f"{name} is {other!r}, expected {one!r}"
