"""Errors in configurations, command lines, checkpoints and runs."""

from __future__ import annotations

from tests.errors.acts import (
    Row,
    ablation,
    benchmark,
    call,
    checkpoint,
    decide,
    faq,
    finetune,
    prepare,
    run,
    training_arguments,
)

TEXTS = {"corpus.txt": "猫\n狗\n"}
SEALED = {"format": 1, "step": 3, "run": {}, "files": {}}
LARGE = "{layers: 24, hidden_size: 1024, heads: 16, intermediate_size: 4096, vocab_size: 21128}"
ABLATION = {"data": {"batch_size": 8}, "variants": {"stock": {"stock": True}, "full": {"after": "stock"}}}

# fmt: off
ROWS: dict[str, list[Row]] = {
    "experiments.ablation": [
        Row("a seed twice", ablation({**ABLATION, "ablation": {"seeds": [1, 1]}}),
            "ablation.seeds must be different numbers, at least one, got [1, 1]"),
        Row("a variant after itself", ablation({"variants": {"full": {"after": "full"}}}),
            "variant 'full' of TMP/ablation.yaml comes after itself; change `after`"),
        Row("two variants of one label", ablation({"variants": {
            "full": {"label": "all", "after": "stock"}, "half": {"label": " all", "after": "stock"}}}),
            "labels of TMP/ablation.yaml must differ, 'half' and 'full' are both 'all'; change one"),
        Row("a variant after none", ablation({"variants": {"full": {"after": "stok"}}}),
            "`after` of variant 'full' of TMP/ablation.yaml must be a variant, got 'stok'; known are full"),
        Row("an unknown --only", ablation(ABLATION, "--only", "fll"),
            "unknown variant 'fll' in TMP/ablation.yaml; did you mean full?"),
        Row("a time limit", ablation({**ABLATION, "train": {"max_seconds": 5}}),
            "variants are compared at equal steps, so 'full'…got 5 seconds; unset train.max_seconds…"),
    ],
    "training.arguments": [
        Row("no data", finetune("--data.mixture", "null"),
            "TMP/run.yaml names no data; set data.mixture to a mixture file or write the mapping there"),
        Row("deepspeed missing", finetune("--train.deepspeed", "x.json", without=["deepspeed"]),
            'train.deepspeed needs deepspeed; run: pip install "piccolo_st[deepspeed]"'),
    ],
    "evaluation.benchmarks": [
        Row("a score of no task",
            call("evaluation.benchmarks:average_scores", lambda w: {"T2Rerankng": 1.0}, benchmark),
            "unknown task 'T2Rerankng' in c-mteb-35; did you mean T2Reranking?"),
    ],
    "training.estimate": [
        Row("a shape without layers", finetune("--plan", "--plan.encoder", "{hidden_size: 64}"),
            "the shape of the encoder must have layers…got hidden_size; give all of them as plan.encoder…"),
        Row("a GPU too small", finetune("--plan", "--plan.encoder", LARGE, "--plan.gpu_memory_gib", "1"),
            "the run must fit into 0.9 GiB of each GPU, 1…got 5.4 GiB; most of it is optimizer, 2.4 GiB…"),
    ],
    "training.manifest": [
        Row("a folder of another name",
            call("training.manifest:seal", lambda w: w.write("last/x", "").parent, lambda w: {}),
            "a checkpoint must be a folder checkpoint-N, got TMP/last"),
        Row("no manifest", checkpoint(), "the checkpoint TMP/ckpt/checkpoint-3 has no manifest.json…"),
        Row("a manifest of the future", checkpoint({**SEALED, "format": 7}),
            "TMP/ckpt/checkpoint-3/manifest.json must have format 1, which this version reads, got 7"),
        Row("a manifest without files", checkpoint({**SEALED, "files": {"model.pt": {}}}),
            "TMP/ckpt/checkpoint-3/manifest.json must list its files with size and sha256"),
        Row("a manifest without its run", checkpoint({"format": 1, "files": {}}),
            "TMP/ckpt/checkpoint-3/manifest.json must hold a step and a run"),
        Row(
            "a manifest that leads elsewhere",
            checkpoint({**SEALED, "files": {"../run.yaml": {"size": 1, "sha256": ""}}}),
            "the manifest of TMP/ckpt/checkpoint-3 names '../run.yaml', which is not a path inside the checkpoint",
        ),
        Row("a file cut short", checkpoint({**SEALED, "files": {"config.json": {"size": 9, "sha256": ""}}}),
            "the checkpoint TMP/ckpt/checkpoint-3 is not whole: config.json has 2 bytes instead of 9"),
        Row("a resume from nowhere", finetune("--train.resume", "TMP/checkpoint-9"),
            "the checkpoint TMP/checkpoint-9 does not exist; name one that does"),
    ],
    "config": [
        Row("no such file", run("finetune", "TMP/nowhere.yaml"),
            "TMP/nowhere.yaml does not exist; give the path of a YAML file"),
        Row("a folder as the file", run("finetune", "TMP"),
            "TMP cannot be read: …; give the path of a YAML file"),
        Row("broken YAML", finetune(files={"run.yaml": "data: [1, 2\n"}),
            "TMP/run.yaml is not YAML: …, line 2, column 1"),
        Row("a list of sections", finetune(files={"run.yaml": "- data\n"}),
            "TMP/run.yaml must hold a mapping of keys to values, got list"),
        Row("a misspelt section", finetune("--dta.batch_size", "8"),
            "unknown section 'dta' in the command line; did you mean data?"),
        Row("a section of one number", finetune(files={"run.yaml": "data: 3\n"}),
            "section 'data' in TMP/run.yaml, line 1 must be a mapping, got 3"),
        Row("a misspelt key in the file", finetune(files={"run.yaml": "data: {bach_size: 8}\n"}),
            "unknown key 'data.bach_size' in TMP/run.yaml, line 1; did you mean data.batch_size?"),
        Row("a misspelt key", finetune("--data.bach_size", "8"),
            "unknown key 'data.bach_size' in the command line; did you mean data.batch_size?"),
        Row("a key that another replaces", finetune("--train.per_device_train_batch_size", "8"),
            "train.per_device_train_batch_size cannot be set in the command line; set data.batch_size instead"),
        Row("not an override", finetune("batch_size=8"),
            "'batch_size=8' is not an override; write --section.field value"),
        Row("an override that is no YAML", finetune("--data.mixture", "{a"),
            "--data.mixture must be YAML, got '{a': …, line 1, column 3"),
        Row("an override inside a number", finetune("--data.batch_size.x", "1"),
            "--data.batch_size.x needs batch_size to be a mapping, got 8"),
        Row("a list for a number", finetune("--data.batch_size", "[8, 16]"),
            "data.batch_size must be of type int, got [8, 16]"),
        Row("a mapping for a number", finetune("--data.batch_size", "{a: 1}"),
            "data.batch_size must be of type int, got {'a': 1}"),
        Row("a word for true or false", finetune("--train.packing", "perhaps"),
            "train.packing must be of type bool, got 'perhaps'"),
        Row("a value that transformers refuses", finetune("--train.save_strategy", "sometimes"),
            "section 'train': …SaveStrategy…"),
        Row("a choice that is none", prepare("check", "--executor.kind", "slum"),
            "executor.kind must be one of here, local, slurm, ray, got 'slum'; did you mean slurm?"),
        Row("pretrain: a misspelt key", run("pretrain", "--loss.temprature", "0.1"),
            "unknown key 'loss.temprature' in the command line; did you mean loss.temperature?"),
        Row("ablation: not an override", run("ablation", "--ablation", "x"),
            "'--ablation' is not an override; write --section.field value"),
        Row("demo: a word for a number", run("demo", "MODEL", "--limit", "many"),
            "--limit must be of type int, got 'many'"),
        Row("demo: an unknown option", run("demo", "--corps", "x"),
            "unknown argument '--corps'; did you mean --corpus?"),
        Row("evaluate: a choice that is none", run("evaluate", "MODEL", "--dtype", "float8"),
            "--dtype must be one of float32, float16, bfloat16, got 'float8'"),
        Row("evaluate: an option without its value", run("evaluate", "MODEL", "--name"),
            "--name needs one argument; see --help"),
        Row("evaluate: one folder to compare", run("evaluate", "--compare", "TMP"),
            "--compare needs 2 arguments; see --help"),
        Row("release: no repository", run("release", "MODEL"), "the command line must have repo_id; see --help"),
        Row("release: a word too many", run("release", "MODEL", "org/name", "extra"),
            "unknown argument 'extra'; see --help"),
        Row("card: no folder", run("card"), "the command line must have FOLDER; see --help"),
    ],
    "demo.corpus": [
        Row("a folder of something else", run("demo", "MODEL", "--corpus", "TMP"),
            "the corpus TMP is a folder without corpus.jsonl; give a BEIR folder or a text file"),
        Row("bytes", run("demo", "MODEL", "--corpus", "TMP/c.txt", files={"c.txt": b"\xff\xfe"}),
            "the corpus TMP/c.txt cannot be read as UTF-8 text, one a line: …"),
        Row("an empty corpus", run("demo", "MODEL", "--corpus", "TMP/c.txt", files={"c.txt": "\n"}),
            "the corpus TMP/c.txt has no text; give a file with one text a line, or a BEIR folder"),
    ],
    "training.resumable": [
        Row("a broken checkpoint alone", finetune(files={"run/checkpoint-3/manifest.json": "{"}),
            "there is no complete checkpoint in TMP/run to go on…; start anew with --train.resume…"),
    ],
    "training.guards": [
        Row(
            "DeepSpeed on a CPU",
            call("training.guards:check_supported", lambda w: training_arguments(w, deepspeed="x.json"), None,
                lambda w: []),
            "train.deepspeed must be unset on a CPU, got 'x.json'; transformers would silently use "
            "DistributedDataParallel there, so launch with recipes/accelerate/cpu_zero1.yaml, or unset train.use_cpu "
            "(or ACCELERATE_USE_CPU) if there is an accelerator",
        ),
    ],
    "training.ownership": [
        Row("an output under a file", finetune("--train.output_dir", "TMP/faq.jsonl/run"),
            "train.output_dir TMP/faq.jsonl/run cannot be written to: Not a directory; name another directory"),
    ],
    "tables": [
        Row("matplotlib missing",
            call("evaluation.curves:plot_curves", lambda w: [], "TMP/x.png", without=["matplotlib.figure"]),
            'a picture needs matplotlib; run: pip install "piccolo_st[quickstart]"'),
    ],
    "training.resume": [
        Row("another run", decide({}, {"signature": {"seed": 2}}),
            "TMP/run/checkpoint-3 is of another run: seed was 1 and is 2; undo the change to go on, or keep…"),
        Row("another engine", decide({}, {"engine": "DeepSpeed ZeRO-1"}),
            "TMP/run/checkpoint-3 was written under plain and this run…; go on under plain, or start…"),
        Row("another number of processes", decide({"engine": "FSDP"}, {"engine": "FSDP", "world_size": 2}),
            "TMP/run/checkpoint-3 was written by 1 processes and there are 2; the optimizer state of FSDP…"),
    ],
    "training.assembly": [
        Row("a word for a temperature", faq("loss={temperature: low}"),
            "section 'loss': loss of dataset 'faq': temperature must be a positive number, got 'low'"),
    ],
    "__main__": [
        Row("an unknown command", run("finetun"),
            "the first argument must be a command, got 'finetun'; did you mean finetune?"),
    ],
    "shipped": [
        Row("an unknown configuration", run("finetune", "quikstart"),
            "a file must be named by its path, or by its name…got 'quikstart'; did you mean quickstart? known are…"),
    ],
    "commands.demo": [
        Row("gradio missing", run("demo", "MODEL", "--corpus", "TMP/corpus.txt", files=TEXTS, without=["gradio"]),
            'the page needs gradio; run: pip install "piccolo_st[demo]"'),
    ],
    "commands.evaluate": [
        Row("a misspelt key", run("evaluate", "--config", "TMP/e.yaml", files={"e.yaml": "benchmrk: STS"}),
            "unknown key 'benchmrk' in TMP/e.yaml; did you mean benchmark?"),
        Row("a word for a dimension", run("evaluate", "MODEL", "--truncate_dim", "half"),
            "--truncate_dim must be whole numbers, such as 256,512,1024, got 'half'"),
    ],
    "commands.prepare": [
        Row("an unknown step", run("prepare", "dedupe"),
            "the first argument must be a step, got 'dedupe'; did you mean dedup?"),
    ],
    "commands.ablation": [
        Row("--only without a name", run("ablation", "--only"),
            "--only needs the names of variants, got none; write --only stock,full"),
    ],
    "schema": [
        Row("a plan that keeps all memory", finetune("--plan", "--plan.reserve", "1"),
            "plan.reserve must be at least 0 and below 1, got 1"),
        Row("no negatives", finetune("--data.num_negatives", "0"),
            "data.num_negatives must be a whole number of at least 1, got 0"),
    ],
    "data.mixture": [
        Row("a word for a number", finetune("--train.learning_rate", "fast"),
            "train.learning_rate must be of type float, got 'fast'"),
    ],
}
# fmt: on
