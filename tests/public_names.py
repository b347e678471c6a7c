"""Names and shapes of public checkpoints, as their libraries list them.

Written apart from the tables in `centermerge_jax.models.naming`, which tests hold
against them. The default lengths all differ, so that no axis passes for another.
"""

import numpy as np

WIDTH, HIDDEN, TOKENS, PATCH = 8, 20, 10, 2
TEXT, TEXT_HIDDEN, WORDS, CONTEXT = 12, 48, 33, 14
EMBED, CLASSES, TYPES = 6, 5, 2


def layer(name, outputs, inputs):
    """`torch.nn.Linear`."""
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def conv1d(name, inputs, outputs):
    """GPT-2's own dense layer."""
    return {f"{name}.weight": (inputs, outputs), f"{name}.bias": (outputs,)}


def norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def openclip_tower(above, depth, width, hidden):
    shapes = {}
    for i in range(depth):
        block = f"{above}transformer.resblocks.{i}"
        shapes |= norm(f"{block}.ln_1", width)
        shapes |= {
            f"{block}.attn.in_proj_weight": (3 * width, width),
            f"{block}.attn.in_proj_bias": (3 * width,),
        }
        shapes |= layer(f"{block}.attn.out_proj", width, width)
        shapes |= norm(f"{block}.ln_2", width)
        shapes |= layer(f"{block}.mlp.c_fc", hidden, width)
        shapes |= layer(f"{block}.mlp.c_proj", width, hidden)
    return shapes


def openclip(
    depths=(2, 3),
    vision=(WIDTH, HIDDEN, TOKENS, PATCH),
    text=(TEXT, TEXT_HIDDEN, WORDS, CONTEXT),
    embed=EMBED,
):
    """open_clip's `CLIP`."""
    width, hidden, tokens, patch = vision
    text_width, text_hidden, words, context = text
    return {
        "positional_embedding": (context, text_width),
        "text_projection": (text_width, embed),
        "logit_scale": (),
        "visual.class_embedding": (width,),
        "visual.positional_embedding": (tokens, width),
        "visual.proj": (width, embed),
        "visual.conv1.weight": (width, 3, patch, patch),
        **norm("visual.ln_pre", width),
        **openclip_tower("visual.", depths[0], width, hidden),
        **norm("visual.ln_post", width),
        **openclip_tower("", depths[1], text_width, text_hidden),
        "token_embedding.weight": (words, text_width),
        **norm("ln_final", text_width),
    }


def image_encoder(prefix="model.", **sizes):
    """As the task-vector and TALL-masks repositories save it."""
    return {
        prefix + name: shape
        for name, shape in openclip(**sizes).items()
        if not name.startswith("transformer.")
    }


def hf_clip_tower(above, depth, width, hidden):
    shapes = {}
    for i in range(depth):
        block = f"{above}.encoder.layers.{i}"
        for part in ("k", "v", "q", "out"):
            shapes |= layer(f"{block}.self_attn.{part}_proj", width, width)
        shapes |= norm(f"{block}.layer_norm1", width)
        shapes |= layer(f"{block}.mlp.fc1", hidden, width)
        shapes |= layer(f"{block}.mlp.fc2", width, hidden)
        shapes |= norm(f"{block}.layer_norm2", width)
    return shapes


def hf_clip_vision(
    depth=2, vision=(WIDTH, HIDDEN, TOKENS, PATCH), prefix="vision_model."
):
    """`CLIPVisionModel`; transformers 5 saves it without the prefix."""
    width, hidden, tokens, patch = vision
    above = "vision_model"
    shapes = {
        f"{above}.embeddings.class_embedding": (width,),
        f"{above}.embeddings.patch_embedding.weight": (width, 3, patch, patch),
        f"{above}.embeddings.position_embedding.weight": (tokens, width),
        **norm(f"{above}.pre_layrnorm", width),
        **hf_clip_tower(above, depth, width, hidden),
        **norm(f"{above}.post_layernorm", width),
    }
    return {
        prefix + name.removeprefix("vision_model."): shapes[name] for name in shapes
    }


def hf_clip(
    depths=(2, 3),
    vision=(WIDTH, HIDDEN, TOKENS, PATCH),
    text=(TEXT, TEXT_HIDDEN, WORDS, CONTEXT),
    embed=EMBED,
):
    """`CLIPModel`."""
    text_width, text_hidden, words, context = text
    above = "text_model"
    return {
        "logit_scale": (),
        f"{above}.embeddings.token_embedding.weight": (words, text_width),
        f"{above}.embeddings.position_embedding.weight": (context, text_width),
        **hf_clip_tower(above, depths[1], text_width, text_hidden),
        **norm(f"{above}.final_layer_norm", text_width),
        **hf_clip_vision(depths[0], vision),
        "visual_projection.weight": (embed, vision[0]),
        "text_projection.weight": (embed, text_width),
    }


def timm(
    depth=2, vision=(WIDTH, HIDDEN, TOKENS, PATCH), *, layer_scale=False, registers=0
):
    """timm's `VisionTransformer`; with registers, positions are the patches' alone."""
    width, hidden, tokens, patch = vision
    tokens -= bool(registers)
    shapes = {
        "cls_token": (1, 1, width),
        **({"reg_token": (1, registers, width)} if registers else {}),
        "pos_embed": (1, tokens, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        **norm("norm", width),
        **layer("head", CLASSES, width),
    }
    for i in range(depth):
        block = f"blocks.{i}"
        shapes |= norm(f"{block}.norm1", width)
        shapes |= layer(f"{block}.attn.qkv", 3 * width, width)
        shapes |= layer(f"{block}.attn.proj", width, width)
        shapes |= norm(f"{block}.norm2", width)
        shapes |= layer(f"{block}.mlp.fc1", hidden, width)
        shapes |= layer(f"{block}.mlp.fc2", width, hidden)
        if layer_scale:
            shapes |= {f"{block}.ls1.gamma": (width,), f"{block}.ls2.gamma": (width,)}
    return shapes


def hf_dinov2(
    depth=2, vision=(WIDTH, HIDDEN, TOKENS, PATCH), prefix="", *, registers=0
):
    """`Dinov2Model`, or `Dinov2WithRegistersModel`."""
    width, hidden, tokens, patch = vision
    shapes = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.mask_token": (1, width),
        **({"embeddings.register_tokens": (1, registers, width)} if registers else {}),
        "embeddings.position_embeddings": (1, tokens, width),
        "embeddings.patch_embeddings.projection.weight": (width, 3, patch, patch),
        "embeddings.patch_embeddings.projection.bias": (width,),
        **norm("layernorm", width),
    }
    for i in range(depth):
        block = f"encoder.layer.{i}"
        shapes |= norm(f"{block}.norm1", width)
        for part in ("query", "key", "value"):
            shapes |= layer(f"{block}.attention.attention.{part}", width, width)
        shapes |= layer(f"{block}.attention.output.dense", width, width)
        shapes |= norm(f"{block}.norm2", width)
        shapes |= layer(f"{block}.mlp.fc1", hidden, width)
        shapes |= layer(f"{block}.mlp.fc2", width, hidden)
        for scale in (1, 2):
            shapes[f"{block}.layer_scale{scale}.lambda1"] = (width,)
    return {prefix + name: shape for name, shape in shapes.items()}


def hf_bert(
    depth=2,
    sizes=(WIDTH, HIDDEN, WORDS, CONTEXT),
    *,
    types=TYPES,
    prefix="",
    pooler=True,
):
    """`BertModel`, and below a prefix that of `BertForSequenceClassification`."""
    width, hidden, words, context = sizes
    shapes = {
        "embeddings.word_embeddings.weight": (words, width),
        "embeddings.position_embeddings.weight": (context, width),
        "embeddings.token_type_embeddings.weight": (types, width),
        **norm("embeddings.LayerNorm", width),
        **(layer("pooler.dense", width, width) if pooler else {}),
    }
    for i in range(depth):
        block = f"encoder.layer.{i}"
        for part in ("query", "key", "value"):
            shapes |= layer(f"{block}.attention.self.{part}", width, width)
        shapes |= layer(f"{block}.attention.output.dense", width, width)
        shapes |= norm(f"{block}.attention.output.LayerNorm", width)
        shapes |= layer(f"{block}.intermediate.dense", hidden, width)
        shapes |= layer(f"{block}.output.dense", width, hidden)
        shapes |= norm(f"{block}.output.LayerNorm", width)
    return {prefix + name: shape for name, shape in shapes.items()}


def hf_roberta(depth=2, sizes=(WIDTH, HIDDEN, WORDS, CONTEXT), prefix="roberta."):
    """`RobertaForSequenceClassification`, or with "" `RobertaModel` with a pooler."""
    pooler = not prefix
    shapes = hf_bert(depth, sizes, types=1, prefix=prefix, pooler=pooler)
    if prefix:
        shapes |= layer("classifier.dense", sizes[0], sizes[0])
        shapes |= layer("classifier.out_proj", CLASSES, sizes[0])
    return shapes


def hf_gpt2(depth=2, sizes=(WIDTH, 4 * WIDTH, WORDS, CONTEXT), prefix=""):
    """`GPT2Model`."""
    width, hidden, words, context = sizes
    shapes = {
        "wte.weight": (words, width),
        "wpe.weight": (context, width),
        **norm("ln_f", width),
    }
    for i in range(depth):
        block = f"h.{i}"
        shapes |= norm(f"{block}.ln_1", width)
        shapes |= conv1d(f"{block}.attn.c_attn", width, 3 * width)
        shapes |= conv1d(f"{block}.attn.c_proj", width, width)
        shapes |= norm(f"{block}.ln_2", width)
        shapes |= conv1d(f"{block}.mlp.c_fc", width, hidden)
        shapes |= conv1d(f"{block}.mlp.c_proj", hidden, width)
    return {prefix + name: shape for name, shape in shapes.items()}


def arrays(shapes, dtype=np.float32):
    """Random arrays, of which no two hold the same; buffers in their own types."""
    made = {}
    for i, (name, shape) in enumerate(shapes.items()):
        x = np.asarray(np.random.default_rng(i).normal(size=shape))
        if name.endswith(("position_ids", "input_resolution")):
            made[name] = np.asarray(100 * x).astype(np.int64)
        elif name.endswith(".attn.bias"):
            made[name] = np.asarray(x > 0)
        else:
            made[name] = x.astype(dtype)
    return made
