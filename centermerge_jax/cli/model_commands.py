"""Commands about models and tasks, as dataclasses: see `commands`."""

import sys
from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg

from centermerge_jax.progress import progress

_Tasks = Annotated[tuple[str, ...], arg(metavar="TASK ...")]


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Write a checkpoint under the names of another family, or under ours.

    Nothing is computed: arrays keep their bits, and the way back gives the same file.

    Example: centermerge convert zeroshot.safetensors zeroshot --to hf
    """

    input: Positional[str]
    """The checkpoint, in any format that `merge` reads."""

    output: Positional[str]
    """The new one: a file if it ends in .safetensors, else a folder."""

    to: str
    """openclip, hf-clip, timm, hf-dinov2, hf-bert, hf-roberta, hf-gpt2; hf for the one
    of these that fits; flax (our names), or orbax (our names, as an Orbax folder)."""

    source: Annotated[str | None, arg(name="from")] = None
    """The family of its names; found by itself where they tell."""

    prefix: str | None = None
    """What to put before public names, such as 'model.' for the checkpoints of the
    task-vector repositories."""

    path: str | None = None
    """Where the parameters lie inside an Orbax directory."""

    quiet: bool = False
    """Show no progress and no summary."""

    def run(self) -> None:
        """Converts and says what was left behind."""
        from centermerge_jax.convert import convert

        with progress(quiet=self.quiet) as report:
            done = convert(
                self.input,
                self.output,
                target=self.to,
                source=self.source,
                prefix=self.prefix,
                subtree=self.path,
                progress=report,
                command=["centermerge", *sys.argv[1:]],
            )
        for leaf in done.left_behind:
            print(f"note: {done.target} has no place for {leaf}", file=sys.stderr)
        if not self.quiet:
            print(f"wrote {self.output}: from {done.source} to {done.target}")


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Make zero-shot heads of tasks by CLIP's text encoder.

    Example: centermerge heads clip -o heads.safetensors --tasks clip8
    """

    model: Positional[str]
    """A whole CLIP model, with its text encoder."""

    tasks: _Tasks
    """Names of tasks, or of suites: clip8, clip14, clip20."""

    output: Annotated[str, arg(aliases=("-o",))]
    """A file that ends in .safetensors."""

    tokenizer: str | None = None
    """Folder or file of the tokeniser, or 'openai' for the list that CLIP has, out of a
    Python package; by default the files beside the model's weights."""

    batch: int = 64
    """Texts at a time."""

    quiet: bool = False
    """Show no progress and no summary."""

    def run(self) -> None:
        """Makes and writes them."""
        from centermerge_jax.checkpoints import refuse_existing
        from centermerge_jax.convert import load_model
        from centermerge_jax.data import registry, wheels
        from centermerge_jax.data.tokenizers import load_tokenizer
        from centermerge_jax.errors import ParameterError
        from centermerge_jax.models.clip import CLIPConfig
        from centermerge_jax.zero_shot import build_heads, published_prompts
        from centermerge_jax.zero_shot_files import save_heads

        refuse_existing(self.output)
        if self.batch < 1:
            raise ParameterError(f"--batch is at least 1; got {self.batch}")
        names = [task.name for task in registry.select(self.tasks)]
        prompts = published_prompts(names)
        with progress(quiet=self.quiet) as report:
            model = load_model(self.model, progress=report)
            if not isinstance(model.config, CLIPConfig) or "text" not in model.params:
                raise ParameterError(
                    f"{self.model} is no whole CLIP model: its text encoder is needed"
                )
            place = self.tokenizer or model.checkpoint.path
            if place == "openai":
                place = wheels.fetch("open_clip_torch")
            text = model.config.text
            tokenizer = load_tokenizer(
                place, context=text.context, vocabulary=text.vocabulary
            )
            heads = build_heads(
                model, tokenizer, prompts, batch=self.batch, progress=report
            )
        save_heads(self.output, heads)
        if not self.quiet:
            print(f"wrote {self.output}: heads of {', '.join(names)}")


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Evaluate a model on tasks: accuracy with intervals, calibration, confusion.

    Example: centermerge evaluate merged --tasks clip8 --heads heads.safetensors
    """

    model: Positional[str]
    """A checkpoint of any known family: CLIP, vision transformers, BERT, GPT-2."""

    tasks: _Tasks
    """Names of tasks, or of suites: clip8, clip14, clip20, glue7, real."""

    heads: UseAppendAction[tuple[str, ...]] = ()
    """A file of zero-shot heads (from `centermerge heads`); or TASK=CHECKPOINT, whose
    linear head is that of the task. Repeatable. By default the model's own head."""

    data_dir: str = "data"
    """Folder of all data: prepared TFDS sets, or image folders."""

    split: Literal["test", "validation", "train"] = "test"
    """Which examples. Choose by validation, report test."""

    limit: int | None = None
    """At most so many examples of each task, the same ones every time."""

    experts: UseAppendAction[tuple[str, ...]] = ()
    """Results of an expert on the same examples, as --output writes them; repeatable.
    With those of each task's expert, accuracy is also shown as a share of theirs."""

    output: Annotated[str | None, arg(aliases=("-o",))] = None
    """JSON file for everything that was measured, and what is needed to repeat it;
    written anew after each task."""

    resume: bool = False
    """Continue an unfinished evaluation into this output, if there is one."""

    batch: int = 64
    """Examples at a time."""

    workers: int = 0
    """Processes that read and prepare images."""

    preprocessing: Literal["clip", "imagenet", "dino", "half"] | None = None
    """How images are prepared; by default as is usual for the model's family."""

    size: int | None = None
    """Side of the images in pixels; by default that which the model has positions for,
    and 224 for DINOv2."""

    tokenizer: str | None = None
    """Folder or file of the tokeniser; by default the files beside the weights. Texts
    are cut at 128 tokens."""

    path: str | None = None
    """Where the parameters lie inside an Orbax directory."""

    quiet: bool = False
    """Show no progress and no table."""

    def run(self) -> None:
        """Evaluates, shows a table, writes the results."""
        from rich.console import Console

        from centermerge_jax.convert import load_model
        from centermerge_jax.data import registry
        from centermerge_jax.errors import ParameterError
        from centermerge_jax.evaluation_drafts import check_output, drafted
        from centermerge_jax.evaluation_files import experts_of
        from centermerge_jax.evaluation_report import summarise, table
        from centermerge_jax.task_evaluation import (
            counted,
            encoder,
            evaluate_tasks,
            open_tasks,
            read_heads,
        )
        from centermerge_jax.zero_shot import tree_digest

        if self.output:
            check_output(self.output, resume=self.resume)
        elif self.resume:
            raise ParameterError("--resume continues a file: it takes --output")
        tasks = registry.select(self.tasks)
        names = [task.name for task in tasks]
        experts = experts_of(names, self.experts)
        with progress(quiet=self.quiet) as report:
            report("reading the model", 0.0)
            model = load_model(self.model, subtree=self.path)
            made = encoder(
                model,
                preprocessing=self.preprocessing,
                size=self.size,
                tokenizer=self.tokenizer,
            )
            heads, remarks = read_heads(self.heads, model, tasks, made.features)
            inputs = open_tasks(
                tasks,
                made.preparation,
                data_dir=self.data_dir,
                split=self.split,
                limit=self.limit,
                batch=self.batch,
                workers=self.workers,
            )
            if self.split == "test" and self.limit is None:
                remarks += counted(tasks, inputs)
            for remark in remarks:
                print(f"note: {remark}", file=sys.stderr)
            settings = {
                "command": ["centermerge", *sys.argv[1:]],
                "model": self.model,
                "model_digest": tree_digest(model.params),
                "head_digests": {name: tree_digest(x) for name, x in heads.items()},
                "split": self.split,
                "limit": self.limit,
                "remarks": remarks,
                "preparation": getattr(
                    made.preparation, "digest", repr(made.preparation)
                ),
                "data_dir": self.data_dir,
                "batch": self.batch,
            }
            with drafted(self.output, names, settings) as draft:
                results = evaluate_tasks(
                    made.features,
                    model.params,
                    tasks,
                    heads,
                    inputs,
                    known=draft.results,
                    keep=draft.keep,
                    progress=report,
                )
                summary = summarise(results, experts)
                draft.finish(summary)
        if not self.quiet:
            Console(highlight=False).print(table(results, summary, experts))
