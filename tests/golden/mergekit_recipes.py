"""Recipes that mergekit and centermerge both read, and the small models they name.

A Llama of two layers, a base and what was fine-tuned from it, in plain NumPy.
"""

from golden import weights

WIDTH, HIDDEN, VOCABULARY, LAYERS = 16, 24, 20, 2
MOVED = {"cars": 0.01, "dtd": 0.02, "mnist": 0.04, "near": 0.0003} | {
    "short": 1e-4,
    "brief": 1e-4,
}
"""Typical size of each expert's task vector; what typical weights have is 0.03."""
SHARED = 0.8
"""How far experts move together, as a share of how far each moves on its own."""
SEEDS = 60
"""Draws of each recipe with random masks."""

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": HIDDEN,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_hidden_layers": LAYERS,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}

_THREE = """\
base_model: base
models:
  - {model: cars, parameters: {weight: 0.5}}
  - {model: dtd, parameters: {weight: 0.25}}
  - {model: mnist, parameters: {weight: 0.4}}
dtype: float32
"""
_ALIKE = """\
base_model: base
models: [{model: cars}, {model: dtd}, {model: mnist}]
dtype: float32
"""
_NO_BASE = _ALIKE.replace("base_model: base\n", "")
_LAYERS = """\
base_model: base
models: [{model: cars}, {model: dtd}, {model: base}]
dtype: float32
"""

RECIPES = {
    "linear": _THREE.replace("base_model: base\n", "") + "merge_method: linear\n",
    "task_arithmetic": _THREE
    + "merge_method: task_arithmetic\nparameters: {normalize: true, lambda: 1.2}\n",
    "task_arithmetic_layers": _LAYERS
    + "merge_method: task_arithmetic\nparameters: {weight: [0.2, 0.7]}\n",
    "ties_untrimmed": _ALIKE
    + "merge_method: ties\nparameters: {weight: 0.5, lambda: 0.7, int8_mask: true}\n",
    "slerp": _LAYERS.replace("{model: dtd}, ", "")
    + "merge_method: slerp\nparameters: {t: 0.3}\n",
    "slerp_unlisted_base": "models: [{model: dtd}]\nbase_model: cars\ndtype: float32\n"
    "merge_method: slerp\nparameters: {t: 0.3}\n",
    "slerp_backwards": "models: [{model: cars}, {model: dtd}]\nbase_model: dtd\n"
    "merge_method: slerp\nparameters: {t: 0.3}\ndtype: float32\n",
    "nuslerp": "merge_method: nuslerp\ndtype: float32\nmodels:\n"
    "  - {model: dtd, parameters: {weight: 0.6}}\n"
    "  - {model: cars, parameters: {weight: 1.0}}\n",
    "nuslerp_near": "merge_method: nuslerp\ndtype: float32\nmodels:\n"
    "  - {model: base, parameters: {weight: 1}}\n"
    "  - {model: near, parameters: {weight: 1}}\n",
    "karcher": _NO_BASE + "merge_method: karcher\n",
    "karcher_to_the_end": _NO_BASE
    + "merge_method: karcher\nparameters: {max_iter: 100, tol: 0.0000001}\n",
    "multislerp": _THREE.replace("base_model: base\n", "")
    + "merge_method: multislerp\n",
    "model_stock": _ALIKE + "merge_method: model_stock\n",
    "breadcrumbs": _THREE
    + "merge_method: breadcrumbs\nparameters: {density: 0.6, gamma: 0.05}\n",
    "breadcrumbs_normalize": _THREE + "merge_method: breadcrumbs\n"
    "parameters: {density: 0.9, normalize: true, lambda: 1.1}\n",
    "breadcrumbs_whole": _THREE + "merge_method: breadcrumbs\n",
    "dare_linear_whole": _THREE + "merge_method: dare_linear\n",
    "dare_ties_whole": _ALIKE
    + "merge_method: dare_ties\nparameters: {weight: 0.5, normalize: true}\n",
    "della_whole": _ALIKE
    + "merge_method: della\nparameters: {weight: 1, lambda: 0.6}\n",
    "sce_whole": _ALIKE + "merge_method: sce\n",
    "sce": _ALIKE + "merge_method: sce\nparameters: {select_topk: 0.25}\n",
}
"""Without random numbers."""

EXPLAINED = {
    "slerp_zeros": "models: [{model: zeros}]\nbase_model: cars\ndtype: float32\n"
    "merge_method: slerp\nparameters: {t: 0.3}\n",
    "model_stock_short": "base_model: base\nmodels: [{model: short}, {model: brief}]\n"
    "dtype: float32\nmerge_method: model_stock\n",
}
"""Where results differ as notes say."""

RANDOM = {
    "dare_linear": _THREE
    + "merge_method: dare_linear\nparameters: {density: 0.6, lambda: 1.5}\n",
    "dare_linear_as_it_is": _THREE
    + "merge_method: dare_linear\nparameters: {density: 0.6, rescale: false}\n",
    "dare_ties": _ALIKE + "merge_method: dare_ties\n"
    "parameters: {density: 0.6, weight: 0.5, normalize: true}\n",
    "dare_ties_as_it_is": _ALIKE + "merge_method: dare_ties\nparameters:\n"
    "  {density: 0.6, weight: 0.5, normalize: true, rescale: false, lambda: 0.8}\n",
    "della": "base_model: base\nmodels: [{model: mnist}]\ndtype: float32\n"
    "merge_method: della\nparameters: {density: 0.6, epsilon: 0.3, weight: 1}\n",
}
"""With random masks."""


ALL = RECIPES | EXPLAINED | RANDOM


def shapes():
    """Every leaf with its shape."""
    found = {"model.embed_tokens.weight": (VOCABULARY, WIDTH)}
    for layer in range(LAYERS):
        above = f"model.layers.{layer}."
        for name in "qkvo":
            found[f"{above}self_attn.{name}_proj.weight"] = (WIDTH, WIDTH)
        for name in ("gate", "up"):
            found[f"{above}mlp.{name}_proj.weight"] = (HIDDEN, WIDTH)
        found[f"{above}mlp.down_proj.weight"] = (WIDTH, HIDDEN)
        for name in ("input", "post_attention"):
            found[f"{above}{name}_layernorm.weight"] = (WIDTH,)
    return found | {
        "model.norm.weight": (WIDTH,),
        "lm_head.weight": (VOCABULARY, WIDTH),
    }


def models():
    """The base and the experts, by name."""
    found = _tuned()
    zeros = {"model.norm.weight": found["cars"]["model.norm.weight"] * 0}
    return found | {"zeros": found["cars"] | zeros}


def _tuned():
    base = {name: weights.leaf(name, shape) for name, shape in shapes().items()}
    return {"base": base} | {
        task: {
            name: x
            + weights.numbers(f"task {task}: {name}", x.shape, deviation=size)
            + weights.numbers(f"tasks: {name}", x.shape, deviation=SHARED * size)
            for name, x in base.items()
        }
        for task, size in MOVED.items()
    }
