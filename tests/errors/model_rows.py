"""Errors in models, losses, evaluations, cards and releases."""

from __future__ import annotations

from tests.errors.acts import (
    PAIRS,
    Row,
    ablation,
    benchmark,
    broken_weights,
    call,
    cut_on_the_left,
    dataset,
    examples,
    finetune,
    jsonl,
    leaking,
    model,
    own_negatives_loss,
    pool,
    pooled,
    prepare,
    relevant,
    run,
    shape,
    space_without_gradio,
    tasks,
    tokenizer,
    two_encoders,
    without_pooling,
    without_positions,
    wrapped_encoder,
)

STS = {"name": "Own", "type": "STS", "data": "pairs.jsonl"}
SEARCH = {"name": "Own", "type": "Retrieval", "data": "beir"}
BEIR = {
    "beir/corpus.jsonl": jsonl([{"_id": "d1", "text": "猫"}, {"_id": "d2", "text": "狗"}]),
    "beir/queries.jsonl": jsonl([{"_id": "q1", "text": "鱼"}]),
}
OF_A_MODEL = "give the directory of a model, or the id of one on the Hub that this machine can reach"
JUDGED = "query-id\tcorpus-id\tscore\n"
OTHER_LABELS = [{"text": "猫", "label": "a"}, {"text": "狗", "label": "a"}, {"text": "鱼", "label": "a"}]

# fmt: off
ROWS: dict[str, list[Row]] = {
    "modeling.loading": [
        Row("a pooling beside another", finetune("--model.name_or_path", "MODEL", "--model.pooling", "cls"),
            "model.pooling must be empty where MODEL brings its own, got 'cls'"),
        Row("a dtype by another name", finetune("--model.dtype", "bf16"),
            "model.dtype must name the numbers that weights are kept in, got 'bf16'; did you mean bfloat16?"),
        Row("a folder that is no model", finetune("--model.name_or_path", "TMP"),
            "model.name_or_path must hold modules.json or config.json, got the directory TMP; give the directory "
            "that save_pretrained wrote, or a Hub id"),
        Row("no such model", finetune("--model.name_or_path", "TMP/nowhere"),
            "model.name_or_path cannot be loaded, got 'TMP/nowhere': …; " + OF_A_MODEL),
        Row("no such model to evaluate", run("evaluate", "TMP/nowhere", "--benchmark", "STS"),
            "the model cannot be loaded, got 'TMP/nowhere': …; " + OF_A_MODEL),
        Row("no such model to mine with", finetune("--data.mining_model", "TMP/nowhere"),
            "data.mining_model cannot be loaded, got 'TMP/nowhere': …; " + OF_A_MODEL),
        Row("no such encoder", prepare("filter", "--filter.top_k", "2", "--filter.model", "TMP/nowhere"),
            "filter.model cannot be loaded, got 'TMP/nowhere': …; " + OF_A_MODEL),
        Row("no such miner", prepare("mine", "--mine.model", "TMP/nowhere"),
            "mine.model cannot be loaded, got 'TMP/nowhere': …; " + OF_A_MODEL),
        Row("no such tokenizer", prepare("mine", "--mine.tokenizer", "TMP/nowhere"),
            "mine.tokenizer cannot be loaded, got 'TMP/nowhere': …; " + OF_A_MODEL),
        Row("no such reranker", prepare("mine", "--mine.reranker", "TMP/nowhere"),
            "mine.reranker cannot be loaded, got 'TMP/nowhere': …; " + OF_A_MODEL),
        Row("a plan for no model", finetune("--plan", "--model.name_or_path", "TMP/nowhere"),
            "the configuration of model.name_or_path cannot be loaded, got 'TMP/nowhere': …; give the encoder's shape "
            "as plan.encoder: {layers: ..., hidden_size: ...}"),
    ],
    "evaluation.bootstrap": [
        Row("no results to compare", run("evaluate", "--compare", "TMP/a", "TMP/b"),
            "TMP/a holds no result files; give the folder of one revision, results/<org>__<name>/<revision>"),
        Row(
            "no task in common",
            run(
                "evaluate", "--compare", "TMP/a", "TMP/b",
                files={"a/x.json": '{"task_name": "x"}', "b/x.json": '{"task_name": "x"}'},
            ),
            "TMP/a and TMP/b have no task of c-mteb-35 in common; evaluate both on it first (results that were not "
            "written by piccolo_st have no examples: evaluate them again)",
        ),
        Row(
            "other data",
            run(
                "evaluate", "--compare", "TMP/a", "TMP/b",
                files={
                    "a/T2Reranking.json": examples([1.0, 0.0], ["q1", "q2"]),
                    "b/T2Reranking.json": examples([1.0, 0.0], ["q1", "q3"]),
                },
            ),
            "the two models were not evaluated on the same examples of T2Reranking; its data changed between the two "
            "evaluations; evaluate both again",
        ),
        Row(
            "other numbers of examples",
            run(
                "evaluate", "--compare", "TMP/a", "TMP/b",
                files={
                    "a/T2Reranking.json": examples([1.0, 0.0], ["q1", "q2"]),
                    "b/T2Reranking.json": examples([1.0], ["q1", "q2"]),
                },
            ),
            "T2Reranking has 2 examples for one model and 1 for the other; evaluate both again",
        ),
    ],
    "evaluation.mteb_model": [
        Row(
            "weights that are not numbers",
            lambda world: tasks(STS, model=broken_weights(world))(world),
            "Own, split 'test': the embedding of '一一' is not finite (NaN or infinity), and so are those of 95 of "
            "95 texts; the weights are broken, or their numbers overflow in this dtype; try float32",
        ),
    ],
    "modeling.fingerprint": [
        Row("a name without its owner", run("evaluate", "MODEL", "--benchmark", "STS", "--name", "piccolo"),
            "the name of a model must be org/name (letters, digits, '_', '-', '.'), got 'piccolo'"),
    ],
    "evaluation.loading": [
        Row("an unknown dtype", call("evaluation.loading:load_model", "MODEL", dtype="float8"),
            "dtype must be one of float32, float16, bfloat16, got 'float8'"),
    ],
    "evaluation.local_tasks": [
        Row("no such file of tasks", run("evaluate", "MODEL", "--benchmark", "TMP/nowhere.yaml"),
            "the file of local tasks TMP/nowhere.yaml cannot be read: …; give the path of a YAML file"),
        Row("a file of something else", tasks(files={"own.yaml": {"datasets": {}}}),
            "TMP/own.yaml must hold one key, `tasks`, with a list of tasks, got datasets"),
        Row("a task twice", tasks(STS, STS),
            "the name of a task of TMP/own.yaml must be letters, digits, '-', '_' and '.', occur once and be none of "
            "mteb's own, got 'Own' twice"),
        Row("a task that mteb has", tasks({**STS, "name": "AFQMC"}),
            "the name of a task of TMP/own.yaml must be letters, digits, '-', '_' and '.', occur once and be none of "
            "mteb's own, got 'AFQMC'"),
        Row("a column that is not there", tasks({**STS, "columns": {"score": "label"}}),
            "TMP/pairs.jsonl, row 1, column 'label' of task 'Own': there is no such column, only sentence1, "
            "sentence2, score; name it in `columns`, as in {score: ...}"),
        Row("a text that is none", tasks(STS, files={"pairs.jsonl": jsonl([{**PAIRS[0], "sentence1": ""}])}),
            "TMP/pairs.jsonl, row 1, column 'sentence1' of task 'Own': a text must be a string that is not empty, "
            "got ''"),
        Row("a score that is none", tasks(STS, files={"pairs.jsonl": jsonl([{**PAIRS[0], "score": "high"}])}),
            "TMP/pairs.jsonl, row 1, column 'score' of task 'Own': a score must be a finite number, got 'high'"),
        Row("a score without end", tasks(STS, files={"pairs.jsonl": jsonl([{**PAIRS[0], "score": "inf"}])}),
            "TMP/pairs.jsonl, row 1, column 'score' of task 'Own': a score must be a finite number, got 'inf'"),
        Row("one score alone", tasks(STS, files={"pairs.jsonl": jsonl(PAIRS[:1])}),
            "the scores of task 'Own' must differ, got 1.0 in every row"),
        Row("no rows", tasks(STS, files={"pairs.jsonl": ""}),
            "pairs.jsonl of task 'Own' has no rows; add some"),
        Row("a broken row", tasks(STS, files={"pairs.jsonl": "{\n"}),
            "TMP/pairs.jsonl, row 1 of task 'Own': not valid JSON, got '{'; correct or remove such rows"),
        Row("a label of three", tasks({**STS, "type": "PairClassification", "columns": {"label": "score"}},
                                      files={"pairs.jsonl": jsonl([{**PAIRS[0], "score": 2}])}),
            "TMP/pairs.jsonl, row 1, column 'score' of task 'Own': a label must be 0 or 1, or be mapped to one of "
            "them in `labels`, got '2'"),
        Row("one kind of pairs", tasks({**STS, "type": "PairClassification", "columns": {"label": "score"}},
                                       files={"pairs.jsonl": jsonl(PAIRS[:1])}),
            "task 'Own' needs pairs of both labels, got 1 in every row"),
        Row("nothing to fit on", tasks({**STS, "type": "Classification"}),
            "task 'Own' of type Classification needs `train`, the file to fit on; add it"),
        Row(
            "a label never fitted",
            tasks(
                {"name": "Own", "type": "Classification", "data": "test.jsonl", "train": "train.jsonl"},
                files={"test.jsonl": jsonl([{"text": "猫", "label": "b"}]), "train.jsonl": jsonl(OTHER_LABELS)},
            ),
            "a label of task 'Own' must be in its `train`, got 'b' in test.jsonl",
        ),
        Row("an empty label", tasks({"name": "Own", "type": "Clustering", "data": "t.jsonl"},
                                    files={"t.jsonl": jsonl([{"text": "猫", "label": ""}])}),
            "TMP/t.jsonl, row 1, column 'label' of task 'Own': a label must not be empty, got ''"),
        Row("one cluster", tasks({"name": "Own", "type": "Clustering", "data": "t.jsonl"},
                                 files={"t.jsonl": jsonl(OTHER_LABELS)}),
            "task 'Own' needs at least two labels, got 'a' in every row"),
        Row("nothing to rank", tasks({"name": "Own", "type": "Reranking", "data": "t.jsonl"},
                                     files={"t.jsonl": jsonl([{"query": "猫", "positive": ["狗"], "negative": []}])}),
            "t.jsonl of task 'Own' has no row with a positive and a negative; add one"),
        Row("rows to search", tasks({**SEARCH, "data": "faq.jsonl"}),
            "task 'Own' needs a BEIR folder (corpus.jsonl, queries.jsonl, qrels.tsv), got 'faq.jsonl'"),
        Row("a folder of rows", tasks({**STS, "data": "beir"}, files={**BEIR, "beir/qrels.tsv": JUDGED}),
            "task 'Own' of type STS must be read from a file of rows, got 'beir'"),
        Row("an unknown document", tasks(SEARCH, files={**BEIR, "beir/qrels.tsv": f"{JUDGED}q1\td9\t1\n"}),
            "TMP/beir/qrels.tsv, row 2 of task 'Own' judges an unknown document 'd9'; leave it out"),
        Row("half a score", tasks(SEARCH, files={**BEIR, "beir/qrels.tsv": f"{JUDGED}q1\td1\t0.5\n"}),
            "TMP/beir/qrels.tsv, row 2 of task 'Own': a score must be whole, got 0.5"),
        Row("nothing to find", tasks(SEARCH, files={**BEIR, "beir/qrels.tsv": f"{JUDGED}q1\td1\t0\n"}),
            "TMP/beir/qrels.tsv of task 'Own' has no document with a score above 0; add one"),
    ],
    "evaluation.scores": [
        Row("a list that is a mapping",
            run("card", "TMP", files={"card.yaml": "comparison: rows.yaml", "rows.yaml": "{}"}),
            "TMP/rows.yaml must hold a list of rows, got dict"),
        Row("rows that are not there", run("card", "TMP", files={"card.yaml": "comparison: rows.yaml"}),
            "the models to compare with in TMP/rows.yaml cannot be read: …; give a YAML file"),
        Row("nothing to draw", call("evaluation.scores:plot_evaluations", lambda w: [], benchmark, "TMP/x.png"),
            "no model has every task of any type of c-mteb-35; evaluate the others"),
    ],
    "evaluation.in_training": [
        Row("an unknown query", relevant(x=["d"]),
            "retrieval set 'faq': `relevant` names query 'x', which `queries` has not; leave it out"),
        Row("an unknown document", relevant(q=["x"]),
            "retrieval set 'faq': query 'q' names document 'x', which `corpus` has not; leave it out"),
        Row("a query without documents", relevant(q=[]),
            "retrieval set 'faq': query 'q' has no relevant document; leave it out"),
        Row("no query", relevant(),
            "retrieval set 'faq' has no query with a relevant document; give `relevant` at least one"),
    ],
    "evaluation.runner": [
        Row("data out of reach", run("evaluate", "MODEL", "--benchmark", "AFQMC"),
            "the data of AFQMC (…) is not in the local cache and the Hub cannot be reached (…); results so far are "
            "kept, so run the same again with a network, with HF_ENDPOINT set to a mirror, or where the data has been "
            "downloaded before; local tasks need no network"),
        Row("a dimension beyond the model's", run("evaluate", "MODEL", "--benchmark", "STS", "--truncate_dim", "999"),
            "truncate_dim must be between 1 and the model's 32 dimensions, got 999"),
    ],
    "evaluation.tasks": [
        Row("an unknown task", run("evaluate", "MODEL", "--benchmark", "T2Retreival"),
            "unknown benchmark, task type or text task 'T2Retreival'; did you mean T2Retrieval?; benchmarks: "
            "c-mteb-35, c-mteb-31, MTEB(cmn, v1); types: Classification, Clustering, PairClassification, Reranking, "
            "Retrieval, STS; or a .yaml file of local tasks"),
        Row("a benchmark twice", run("evaluate", "MODEL", "--benchmark", "c-mteb-35", "c-mteb-35"),
            "two groups are called 'c-mteb-35'; name each benchmark and file once"),
        Row("no subset", run("evaluate", "MODEL", "--benchmark", "STS17"),
            "STS17 has several subsets; name one, as in 'STS17:ko-ko'"),
        Row("an unknown subset", run("evaluate", "MODEL", "--benchmark", "MassiveIntentClassification:zh-XX"),
            "unknown subset 'zh-XX' of MassiveIntentClassification; did you mean zh-TW?"),
        Row("no task", call("evaluation.tasks:select", lambda w: []),
            "nothing to evaluate on; name a benchmark (c-mteb-35, c-mteb-31, MTEB(cmn, v1)), a task or a type"),
    ],
    "modeling.portable.contents": [
        Row("no such folder", call("modeling.portable.contents:release_files", "TMP/nowhere"),
            "TMP/nowhere is not a directory; give the directory of a saved model"),
        Row("a file that is no model's", call("modeling.portable.contents:release_files", "TMP"),
            "TMP holds files that do not belong to a published model: faq.jsonl, mixture.yaml, pairs.jsonl, "
            "run.yaml; leave them out with --exclude PATTERN, publish them with --include PATTERN, or save the model "
            "to an empty directory"),
        Row("an empty folder",
            call("modeling.portable.contents:release_files", lambda w: w.write("new/x", lambda p: None).parent),
            "TMP/new is empty; save the model there first"),
    ],
    "releasing.publish": [
        Row("a tag on a pull request", run("release", "MODEL", "org/name", "--pull-request", "--tag", "v1"),
            "a pull request gets no tag; release with the tag after it is merged"),
        Row("a model that is none", run("release", "TMP/nowhere", "org/name"),
            "TMP/nowhere is not ready to be released: TMP/nowhere is not a directory; give the directory of a saved "
            "model"),
    ],
    "releasing.push": [
        Row("a secret in the card", call("releasing.push:push_checkpoint", leaking, "org/name", message="x"),
            "TMP/leaking is not pushed: README.md, line 1: a Hugging Face token"),
    ],
    "releasing.record": [
        Row("no run there", run("release", "MODEL", "org/name", "--run-dir", "TMP/nowhere"),
            "TMP/nowhere/config.yaml does not exist; name the output directory of a run that has ended"),
    ],
    "demo.space": [
        Row("a text of two lines", call("demo.space:space_files", "org/name", lambda w: ["猫\n狗"]),
            "the texts of a Space must be lines of a file and not empty, got '猫\\n狗'"),
        Row("gradio missing", space_without_gradio,
            'a Space, which names its version of gradio, needs gradio; run: pip install "piccolo_st[demo]"'),
    ],
    "modeling.instructions": [
        Row("a misspelt preset", finetune("--model.instructions", "picolo"),
            "model.instructions must be a preset (piccolo, piccolo-training-notes, none) or instructions of your own, "
            "{query: \"...\", document: \"...\"}, got 'picolo'; did you mean piccolo?"),
        Row("a misspelt task", call("modeling.instructions:resolve_instructions", lambda w: {"qurey": "查询："}),
            "instructions must be a preset (piccolo, piccolo-training-notes, none) or instructions of your own, "
            "{query: \"...\", document: \"...\"} (or passage in the place of document), got the keys ['qurey']"),
        Row("a column of neither kind", call("modeling.instructions:column_tasks", lambda w: ["query", "response"]),
            "columns ['response'] are neither queries nor documents, while ['query'] are; a retrieval dataset has the "
            "columns query, positive and negative (or negative_1, negative_2, ...); rename or remove the others"),
        Row("an instruction for scored pairs", finetune("--data.mixture.datasets.pairs.instruction", "piccolo"),
            "the instructions {'query': '查询：', 'document': '结果：'} of dataset 'pairs' need a column of queries or "
            "documents, got ['sentence1', 'sentence2', 'label']; rename them, or set its instructions to 'none'"),
        Row(
            "an instruction for no dataset",
            call("modeling.instructions:dataset_prompts", lambda w: {"faq": ["query"]}, "piccolo",
                lambda w: {"fqa": "none"}),
            "instructions of single datasets must be for faq, got fqa",
        ),
        Row("an instruction of nothing", call("modeling.instructions:instruction_token_ids", tokenizer, " "),
            "the instruction ' ' has no tokens; leave it out, or write one with text"),
        Row("an unknown character", call("modeling.instructions:instruction_token_ids", tokenizer, "龘："),
            "the instruction '龘：' has characters this tokenizer does not know; write it with characters of the "
            "vocabulary, since other unknown ones would be taken for it"),
        Row("a number for an instruction", call("modeling.instructions:Instructions", 3),
            "the query instruction must be a string, got 3; write '' for none", code=None),
        Row("a number for a preset", call("modeling.instructions:resolve_instructions", 3),
            "instructions must be a preset (piccolo, piccolo-training-notes, none) or instructions of your own, "
            '{query: "...", document: "..."}, got 3', code=None),
    ],
    "modeling.lengths": [
        Row("a query too short", finetune("--model.query_length", "3"),
            "query_length=3 is too short for the instruction '查询：': with the special tokens and one token of text "
            "it takes 6 tokens; raise query_length or shorten the instruction"),
        Row("a passage too long", finetune("--model.document_length", "9999"),
            "document_length=9999 is more than the 512 tokens that BertModel has positions for; lower it, or give "
            "it more with model.positions (extend_positions)"),
        Row("a tokenizer that cuts on the left", call("modeling.lengths:set_lengths", cut_on_the_left),
            "the tokenizer cuts on the left, which cuts the instruction first; set model.tokenizer.truncation_side = "
            '"right"'),
    ],
    "losses.contrast": [
        Row("a temperature of 0", call("losses.contrast:check_temperature", 0),
            "temperature must be a positive number, got 0", code=None),
        Row("an unknown direction", call("losses.contrast:check_directions", lambda w: ["query_to_x"]),
            "directions must be different names of ('query_to_doc', 'query_to_query', 'doc_to_query', 'doc_to_doc'), "
            "got ('query_to_x',)", code=None),
        Row("no pair", call("losses.contrast:check_directions", lambda w: ["doc_to_doc"]),
            "directions must hold 'query_to_doc', which has the positive pair, got ('doc_to_doc',)", code=None),
        Row("a margin below 0", call("losses.contrast:check_margin", -1),
            "false_negative_margin must be None or at least 0, got -1", code=None),
        Row(
            "more queries than positives",
            call("losses.contrast:contrastive_loss", shape(3, 4), shape(2, 4), shape(0, 4), None, temperature=0.1),
            "there must be one positive for each query, and at least one, got (3, 4), (2, 4)",
            code=None,
        ),
        Row(
            "half precision",
            call(
                "losses.contrast:contrastive_loss",
                shape(3, 4, dtype="float16"), shape(3, 4, dtype="float16"), shape(0, 4, dtype="float16"), None,
                temperature=0.1,
            ),
            "queries, positives and negatives must all be float32 or all float64, got [torch.float16, torch.float16, "
            "torch.float16]",
            code=None,
        ),
    ],
    "losses.hybrid": [
        Row("no dataset", call("losses.hybrid:build_losses", model, lambda w: {}),
            "build_losses needs at least one dataset, got none", code=None),
        Row("an unknown task", call("losses.hybrid:build_losses", model, lambda w: {"faq": "retrieve"}),
            "loss of dataset 'faq': the task must be one of retrieval, sts, pair, classification, clustering, got "
            "'retrieve'", code=None),
        Row(
            "an unknown option",
            call("losses.hybrid:build_losses", model, lambda w: {"pairs": ("sts", {"scale": 2})}),
            "loss of dataset 'pairs': unknown key 'scale'; known are chunk_tokens, temperature, weight",
            code=None,
        ),
        Row("a misspelt option", finetune("--data.mixture.datasets.faq.loss", "{temprature: 1}"),
            "loss of dataset 'faq': unknown key 'temprature'; did you mean temperature?"),
        Row(
            "a weight of 0",
            call("losses.hybrid:build_losses", model, lambda w: {"pairs": ("sts", {"weight": 0})}),
            "loss of dataset 'pairs': weight must be a positive number, got 0",
            code=None,
        ),
    ],
    "losses.needs": [
        Row("classes without negatives",
            call("losses.needs:check_needs", "faq", own_negatives_loss, dataset(q=["猫"], p=["狗"]), 8, 1),
            "the loss of dataset 'faq', OwnNegativesLoss, compares each row with its own negatives, and no row has "
            "one; give it a column of negatives, a `label` (`columns: {label: NAME}`), or the task retrieval "
            "(PiccoloLoss), where rows stand against each other"),
        Row("one row a batch", finetune("--data.batch_size", "1"),
            "the loss of dataset 'faq', PiccoloLoss, compares the rows of a batch with each other, and a batch of all "
            "processes has 1; raise the batch size (data.batch_size, in Python per_device_train_batch_size) to 2 or "
            "more"),
    ],
    "losses.piccolo": [
        Row("mini-batches of 0", call("losses.piccolo:PiccoloLoss", model, mini_batch_size=0),
            "mini_batch_size must be None or a whole number of at least 1, got 0", code=None),
    ],
    "releasing.card_folder": [
        Row("no card.yaml", run("card", "TMP"),
            "TMP/card.yaml does not exist; write it, or name another folder"),
        Row("a broken card.yaml", run("card", "TMP", files={"card.yaml": "a: ["}),
            "TMP/card.yaml is not YAML: …, line 1, column 5"),
        Row("a list of fields", run("card", "TMP", files={"card.yaml": "[]"}),
            "TMP/card.yaml must hold a mapping of card fields, got list"),
        Row("a misspelt field", run("card", "TMP", files={"card.yaml": "licence: mit"}),
            "unknown key 'licence' in TMP/card.yaml; did you mean license?"),
        Row("no card to fill", run("release", "TMP", "org/name", "--fill-card"),
            "TMP has no README.md; save the model with its card first"),
        Row("a broken card", run("release", "TMP", "org/name", "--fill-card", files={"README.md": "---\na: [\n---\n"}),
            "the metadata of TMP/README.md cannot be read: …"),
        Row("results of another model", run("release", "MODEL", "org/name", "--results", "TMP/0123456789abcdef"),
            "the results in TMP/0123456789abcdef belong to the model with the content hash 0123456789ab, MODEL has "
            "…; evaluate this directory, and give the folder named after its hash"),
    ],
    "evaluation.results": [
        Row("no results there", call("evaluation.results:read_results", "TMP/nowhere"),
            "the results TMP/nowhere do not exist; give a folder of mteb's JSON files, a .jsonl file or a card (.md)"),
        Row("a folder without results", call("evaluation.results:read_results", "TMP"),
            "TMP holds no result files (Task.json); give the folder of one model's revision"),
        Row("results of another form", call("evaluation.results:read_results", "TMP/run.yaml"),
            "results must be a folder of mteb's JSON files, a .jsonl file or a card (.md), got TMP/run.yaml"),
        Row(
            "a broken line",
            run("card", "TMP", files={"card.yaml": "{}", "results.jsonl": "{\n"}),
            "TMP/results.jsonl, line 1 is not JSON: …; evaluate the task again",
        ),
        Row("a misspelt line", run("card", "TMP", files={"card.yaml": "{}", "results.jsonl": '{"task": 1}\n'}),
            "TMP/results.jsonl, line 1 must be a result with the fields task_type, dataset_type, dataset_name, "
            "config, split, revision, metrics, got {'task': 1}"),
        Row(
            "a result without its metric",
            call(
                "evaluation.results:from_mteb",
                lambda w: {"task_name": "T2Reranking", "scores": {"dev": [{"hf_subset": "default"}]}},
            ),
            "the result of T2Reranking, split 'dev', subset 'default' has no 'map_at_1000', which mteb 2.x writes; "
            "evaluate the task again",
        ),
        Row("a result of mteb 1", call("evaluation.results:from_mteb", lambda w: {"mteb_version": "1.0"}),
            "a result must be as mteb 2.x writes it, got {'mteb_version': '1.0'}; evaluate the task again"),
    ],
    "modeling.portable.onnx_export": [
        Row("onnxscript missing for a release", run("release", "MODEL", "org/name", "--onnx", without=["onnxscript"]),
            'exporting to ONNX needs onnx, onnxscript and onnxruntime; run: pip install "piccolo_st[onnx]"'),
        Row("onnxscript missing", call("modeling.portable.onnx_export:export_onnx", "TMP", without=["onnxscript"]),
            'exporting to ONNX needs onnx, onnxscript and onnxruntime; run: pip install "piccolo_st[onnx]"'),
        Row("no checkpoint", call("modeling.portable.onnx_export:export_onnx", "TMP"),
            "TMP has no config.json; give the folder of a checkpoint, as save_portable writes it"),
    ],
    "modeling.pooling": [
        Row("an empty instruction", call("modeling.pooling:InstructionPooling", 32, instruction_ids=lambda w: [[]]),
            "instruction_ids must not hold an empty prefix, which every row begins with, got [[]]"),
        Row("no pooling", call("modeling.pooling:set_instruction_pooling", without_pooling, "piccolo"),
            "the model must have exactly one Pooling module, got ['Transformer']"),
        Row("no tokens", pool(),
            "excluding instructions needs input_ids, got the features ['attention_mask', 'token_embeddings']; use "
            "include_instruction=True for inputs that are not text"),
        Row("more tokens than embeddings", pool(input_ids=shape(1, 5)),
            "excluding instructions needs one token embedding for each of the 5 input_ids of a row, got 4; use "
            "include_instruction=True with this encoder"),
    ],
    "modeling.portable.limits": [
        Row("a second encoder", call("modeling.portable.limits:check_savable", wrapped_encoder),
            "a checkpoint of this model would not hold it: module '0' holds a second encoder in auto_model, which is "
            "neither run nor saved; set .model, as in model[0].model = get_peft_model(model[0].model, ...)"),
    ],
    "modeling.portable.saving": [
        Row("no pooling at all", call("modeling.portable.saving:save_portable", two_encoders, "TMP/out"),
            "a portable checkpoint must be a Transformer, then Pooling, Dense and Normalize modules, got "
            "['Transformer', 'Transformer']; save such a model with model.save_pretrained"),
        Row(
            "an encoder with another output",
            call("modeling.portable.saving:save_portable", lambda w: model(w, module_output_name="sentence_embedding"),
                "TMP/out"),
            "a portable checkpoint needs a Transformer with module_output_name='token_embeddings', got "
            "'sentence_embedding', which older versions and other servers would ignore",
        ),
        Row("pooling in another order",
            call("modeling.portable.saving:save_portable", lambda w: pooled(w, "mean", "cls"), "TMP/out"),
            "the pooling modes must be in the order ['cls', 'max', 'mean', 'mean_sqrt_len_tokens', 'weightedmean', "
            "'lasttoken'], each at most once, as older versions join them, got ['mean', 'cls']"),
    ],
    "modeling.positions": [
        Row("no table of positions", call("modeling.positions:extend_positions", without_positions, 600),
            "BertModel has no embeddings.position_embeddings table to extend; only encoders of the BERT and "
            "RoBERTa families have one; take one of them, or leave its positions as they are"),
        Row("fewer positions", call("modeling.positions:extend_positions", model, 100),
            "the length must be above the 512 positions that the encoder has, got 100"),
        Row("more than the method tells apart", call("modeling.positions:extend_positions", model, 10**6),
            "hierarchical positions reach to 512 * 512 = 262144 tokens, got 1000000; use method='repeat'"),
        Row("an unknown method", call("modeling.positions:extend_positions", model, 600, "copy"),
            "the method must be 'hierarchical' or 'repeat', got 'copy'"),
    ],
    "_lazy": [
        Row("mteb missing", run("evaluate", "MODEL", "--benchmark", "STS", without=["mteb"]),
            'evaluation on tasks needs mteb; run: pip install "piccolo_st[eval]"'),
        Row("mteb missing, before anything is trained",
            ablation({"variants": {"stock": {}}, "ablation": {"tasks": [STS]}}, without=["mteb"]),
            'evaluation on tasks needs mteb; run: pip install "piccolo_st[eval]"'),
    ],
    "modeling.tiny_bert": [
        Row("no layers", finetune("--model.name_or_path", "null", "--model.build", "{layers: 0}"),
            "model.build.layers must be a whole number of at least 1, got 0"),
        Row("a width that heads do not share", finetune("--model.name_or_path", "null", "--model.build", "{heads: 3}"),
            "model.build.hidden_size must be a multiple of model.build.heads=3, got 256"),
        Row("everything dropped", finetune("--model.name_or_path", "null", "--model.build", "{dropout: 1}"),
            "model.build.dropout must be at least 0 and below 1, got 1.0"),
    ],
}
# fmt: on
