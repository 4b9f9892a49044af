"""Errors in models, losses, evaluations, cards and releases."""

from __future__ import annotations

import json

from piccolo_st.releasing import ReleaseOptions
from tests.errors.acts import (
    BEIR,
    JUDGED,
    OTHER_LABELS,
    PAIRS,
    SEARCH,
    STS,
    Row,
    benchmark,
    broken_weights,
    call,
    dataset,
    distil,
    endless_tokenizer,
    examples,
    finetune,
    jsonl,
    leaking,
    model,
    own_negatives_loss,
    pool,
    prepare,
    relevant,
    run,
    shape,
    space_without_gradio,
    static,
    tasks,
    tokenizer,
    two_encoders,
    without_positions,
    wrapped_encoder,
)

# fmt: off
ROWS: dict[str, list[Row]] = {
    "modeling.loading": [
        Row("a pooling beside another", finetune("--model.name_or_path", "MODEL", "--model.pooling", "cls"),
            "model.pooling must be empty where MODEL brings its own, got 'cls'"),
        Row("a model that cuts no texts", static,
            "model.name_or_path must name a model whose first module is a Transformer with a tokenizer, got "
            "StaticEmbedding; take another, or train this one in Python with PiccoloTrainer"),
        Row("flash attention on a CPU", finetune("--model.attn_implementation", "flash_attention_2"),
            "model.attn_implementation 'flash_attention_2' needs a CUDA GPU…; set it to sdpa"),
        Row("no such model", finetune("--model.name_or_path", "TMP/nowhere"),
            "model.name_or_path cannot be loaded, got 'TMP/nowhere'…; give the directory of a model…"),
        Row("no such model to evaluate", run("evaluate", "TMP/nowhere", "--benchmark", "STS"),
            "the model cannot be loaded, got 'TMP/nowhere'…; give the directory of a model…"),
        Row("no such model to mine with", finetune("--data.mining_model", "TMP/nowhere"),
            "data.mining_model cannot be loaded, got 'TMP/nowhere'…; give the directory of a model…"),
        Row("no such encoder", prepare("filter", "--filter.top_k", "2", "--filter.model", "TMP/nowhere"),
            "filter.model cannot be loaded, got 'TMP/nowhere'…; give the directory of a model…"),
        Row("no such judge", prepare("mine", "--mine.settings", "{judge: TMP/nowhere}"),
            "judge of mining cannot be loaded, got 'TMP/nowhere'…; give the directory of a model…"),
        Row("no such tokenizer", prepare("mine", "--mine.tokenizer", "TMP/nowhere"),
            "mine.tokenizer cannot be loaded, got 'TMP/nowhere'…; give the directory of a model…"),
        Row("a plan for no model", finetune("--plan", "--model.name_or_path", "TMP/nowhere"),
            "the configuration of model.name_or_path cannot…got 'TMP/nowhere': …; give the encoder's shape…"),
    ],
    "modeling.adapters": [
        Row("no peft", finetune("--lora.rank", "4", "--model.name_or_path", "MODEL", without=["peft"]),
            'lora.rank needs peft; run: pip install "piccolo_st[lora]"'),
        Row("no bitsandbytes", call("modeling.adapters:in_4_bits", "bfloat16", without=["bitsandbytes"]),
            'lora.load_in_4bit needs bitsandbytes; run: pip install "piccolo_st[qlora]"'),
    ],
    "modeling.decoders": [
        Row("no token to end texts with", call("modeling.decoders:append_end_token", endless_tokenizer),
            "pooling lasttoken needs a tokenizer that ends…end-of-text token None; set model.processor_kwargs.eos…"),
    ],
    "evaluation.per_example": [
        Row("examples cut short", call("evaluation.per_example:load", lambda w: w.write("ATEC.npz", "PK")),
            "the examples in TMP/ATEC.npz cannot be read (…); evaluate the task again"),
    ],
    "evaluation.bootstrap": [
        Row("no task in common", run(
                "evaluate", "--compare", "TMP/a", "TMP/b",
                files={"a/x.json": '{"task_name": "x"}', "b/x.json": '{"task_name": "x"}'},
            ),
            "TMP/a and TMP/b have no task of c-mteb-35 in common; evaluate both on it first…"),
        Row("another revision of the data", run(
                "evaluate", "--compare", "TMP/a", "TMP/b",
                files={
                    f"{side}/T2Reranking.json": json.dumps({"task_name": "T2Reranking", "dataset_revision": side * 3})
                    for side in "ab"
                },
            ),
            "two models must be evaluated on the same data of T2Reranking to be compared, got its revision aaa in "
            "TMP/a and bbb in TMP/b; evaluate both again"),
        Row("other data", run(
                "evaluate", "--compare", "TMP/a", "TMP/b",
                files={
                    "a/T2Reranking.json": examples([1.0, 0.0], ["q1", "q2"]),
                    "b/T2Reranking.json": examples([1.0, 0.0], ["q1", "q3"]),
                },
            ),
            "the two models were not evaluated on the same examples…; its data changed between the two…"),
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
        Row("weights that are not numbers", lambda world: tasks(STS, model=broken_weights(world))(world),
            "Own, split 'test': the embedding of '一一' is not finite (NaN…; the weights are broken, or their…"),
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
        Row("a task that mteb has", tasks({**STS, "name": "AFQMC"}), "the name of a task of TMP/own.yaml…got 'AFQMC'"),
    ],
    "evaluation.local_types": [
        Row("a column that is not there", tasks({**STS, "columns": {"score": "label"}}),
            "TMP/pairs.jsonl, row 1, column 'label' of task 'Own': there…; name it in `columns`…"),
        Row("a text that is none", tasks(STS, files={"pairs.jsonl": jsonl([{**PAIRS[0], "sentence1": ""}])}),
            "TMP/pairs.jsonl, row 1, column 'sentence1'…got ''"),
        Row("a score that is none", tasks(STS, files={"pairs.jsonl": jsonl([{**PAIRS[0], "score": "high"}])}),
            "TMP/pairs.jsonl, row 1, column 'score' of task 'Own': a score must be a finite number, got 'high'"),
        Row("no rows", tasks(STS, files={"pairs.jsonl": ""}), "pairs.jsonl of task 'Own' has no rows; add some"),
        Row("a broken row", tasks(STS, files={"pairs.jsonl": "{\n"}),
            "TMP/pairs.jsonl, row 1 of task 'Own': not valid JSON, got '{'; correct or remove such rows"),
        Row("one kind of pairs", tasks({**STS, "type": "PairClassification", "columns": {"label": "score"}},
                                       files={"pairs.jsonl": jsonl(PAIRS[:1])}),
            "task 'Own' needs pairs of both labels, got 1 in every row"),
        Row(
            "a label never fitted",
            tasks(
                {"name": "Own", "type": "Classification", "data": "test.jsonl", "train": "train.jsonl"},
                files={"test.jsonl": jsonl([{"text": "猫", "label": "b"}]), "train.jsonl": jsonl(OTHER_LABELS)},
            ),
            "a label of task 'Own' must be in its `train`, got 'b' in test.jsonl",
        ),
        Row("nothing to rank", tasks({"name": "Own", "type": "Reranking", "data": "t.jsonl"},
                                     files={"t.jsonl": jsonl([{"query": "猫", "positive": ["狗"], "negative": []}])}),
            "t.jsonl of task 'Own' has no row with a positive and a negative; add one"),
        Row("a folder of rows", tasks({**STS, "data": "beir"}, files={**BEIR, "beir/qrels.tsv": JUDGED}),
            "task 'Own' of type STS must be read from a file of rows, got 'beir'"),
        Row("an unknown document", tasks(SEARCH, files={**BEIR, "beir/qrels.tsv": f"{JUDGED}q1\td9\t1\n"}),
            "TMP/beir/qrels.tsv, row 2 of task 'Own': names an unknown id, got 'document d9'; correct or remove…"),
        Row("nothing to find", tasks(SEARCH, files={**BEIR, "beir/qrels.tsv": f"{JUDGED}q1\td1\t0\n"}),
            "TMP/beir/qrels.tsv of task 'Own' has no document with a score above 0; add one"),
    ],
    "evaluation.scores": [
        Row("a list that is a mapping",
            run("card", "TMP", files={"card.yaml": "comparison: rows.yaml", "rows.yaml": "{}"}),
            "TMP/rows.yaml must hold a list of rows, got dict"),
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
    ],
    "evaluation.runner": [
        Row("data out of reach", run("evaluate", "MODEL", "--benchmark", "AFQMC"),
            "the data of AFQMC (…) is not in the local cache and the Hub…; results so far are kept, so run…"),
        Row("a dimension beyond the model's", run("evaluate", "MODEL", "--benchmark", "STS", "--truncate_dim", "999"),
            "truncate_dim must be between 1 and the model's 32 dimensions, got 999"),
        Row("a precision of no search", run("evaluate", "MODEL", "--benchmark", "STS", "--precision", "int8"),
            "precision is that of a search, and for Retrieval tasks alone, got AFQMC; name such tasks with…"),
    ],
    "evaluation.small_vectors": [
        Row("faiss missing", call("evaluation.small_vectors:SmallVectorIndex", "int8", without=["faiss"]),
            'a search with small vectors needs faiss; run: pip install "piccolo_st[data]"'),
    ],
    "evaluation.tasks": [
        Row("an unknown task", run("evaluate", "MODEL", "--benchmark", "T2Retreival"),
            "unknown benchmark, task type or text task 'T2Retreival'; did you mean T2Retrieval?…"),
        Row("a benchmark twice", run("evaluate", "MODEL", "--benchmark", "c-mteb-35", "c-mteb-35"),
            "two groups are called 'c-mteb-35'; name each benchmark and file once"),
        Row("no subset", run("evaluate", "MODEL", "--benchmark", "STS17"),
            "STS17 has several subsets; name one, as in 'STS17:ko-ko'"),
        Row("two subsets", run("evaluate", "MODEL", "--benchmark", "STS22:zh", "STS22:zh-en"),
            "one evaluation scores one subset of STS22, got 'zh' and 'zh-en'; evaluate them in two commands"),
        Row("an unknown subset", run("evaluate", "MODEL", "--benchmark", "MassiveIntentClassification:zh-XX"),
            "unknown subset 'zh-XX' of MassiveIntentClassification; did you mean zh-TW?"),
        Row("no task", call("evaluation.tasks:select", lambda w: []),
            "nothing to evaluate on; name a benchmark (c-mteb-35, c-mteb-31, MTEB(cmn, v1)), a task or a type"),
    ],
    "hub": [
        Row("no time at all", call("releasing.publish:publish_folder", "MODEL", lambda w: [], "org/name",
                                 lambda w: ReleaseOptions(deadline=0)),
            "deadline and timeout must be seconds above 0, got 0 and 60"),
    ],
    "modeling.portable.contents": [
        Row("no adapter", run("release", "MODEL", "org/name", "--adapter"),
            "--adapter must be given with an adapter of PEFT, got MODEL, which holds no adapter_config.json; give …"),
        Row("no such folder", call("modeling.portable.contents:release_files", "TMP/nowhere"),
            "TMP/nowhere is not a directory; give the directory of a saved model"),
        Row("an adapter alone", run("release", "TMP", "org/name", "--onnx", files={"adapter_config.json": "{}"}),
            "a published model must hold all its weights, got an adapter alone in TMP; give the whole model that its…"),
    ],
    "commands.release": [
        Row("an adapter as a whole", run("release", "TMP", "org/name", "--adapter", "--onnx",
                                         files={"adapter_config.json": "{}"}),
            "--adapter must come without what needs a whole model, got --onnx; leave that out, or release the model…"),
    ],
    "releasing.adapter_card": [
        Row("an empty form", run("release", "TMP", "org/name", "--adapter", "--fill-card", files={
            "adapter_config.json": '{"peft_type": "LORA", "base_model_name_or_path": "org/base"}',
            "README.md": "[More Information Needed]"}),
            "TMP/README.md must say something, got PEFT's empty form; give the run that left the adapter with…"),
    ],
    "releasing.publish": [
        Row("a model that is none", run("release", "TMP/nowhere", "org/name"),
            "TMP/nowhere is not ready to be released: TMP/nowhere is not…; give the directory of a saved…"),
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
        Row("an instruction for scored pairs", finetune("--data.mixture.datasets.pairs.instruction", "piccolo"),
            "the instructions {'query': '查询：', 'document'…got ['sentence1', 'sentence2'…; rename them, or set its…"),
        Row(
            "an instruction for no dataset",
            call("modeling.instructions:dataset_prompts", lambda w: {"faq": ["query"]}, "piccolo",
                lambda w: {"fqa": "none"}),
            "instructions of single datasets must be for faq, got fqa",
        ),
        Row("a number for an instruction", call("modeling.instructions:Instructions", 3),
            "the query instruction must be a string, got 3; write '' for none", code=None),
    ],
    "modeling.lengths": [
        Row("a passage too long", finetune("--model.document_length", "9999"),
            "document_length=9999 is more than the 512 tokens that BertModel…; lower it, or give it more…"),
    ],
    "losses.contrast": [
        Row("a margin below 0", call("losses.contrast:check_margin", -1),
            "false_negative_margin must be None or at least 0, got -1", code=None),
        Row(
            "more queries than positives",
            call("losses.contrast:contrastive_loss", shape(3, 4), shape(2, 4), shape(0, 4), None, temperature=0.1),
            "there must be one positive for each query, and at least one, got (3, 4), (2, 4)",
            code=None,
        ),
    ],
    "losses.distillation": [
        Row("a batch without scores", distil("今天有雨"),
            "distillation needs a teacher's score for each positive and negative, got a batch without; name their "
            "columns: `columns: {positive_score: pos_scores, negative_score: neg_scores}` of the dataset"),
        Row("teachers of another width",
            finetune("--loss.distillation",
                     "{teachers: [{name_or_path: self}, {name_or_path: self}], cosine_weight: 1}"),
            "cosine_weight of distillation compares embeddings, which must be as wide as its teachers' one after the "
            "other, 64, got 32; set model.dimension to 64, which adds a linear layer, or use similarity_weight alone…"),
    ],
    "losses.hybrid": [
        Row("an unknown task", call("losses.hybrid:build_losses", model, lambda w: {"faq": "retrieve"}),
            "loss of dataset 'faq': the task must be one…got 'retrieve'", code=None),
        Row("an unknown option", call("losses.hybrid:build_losses", model, lambda w: {"pairs": ("sts", {"scale": 2})}),
            "loss of dataset 'pairs': unknown key 'scale'; known are chunk_tokens, temperature, weight", code=None),
        Row("a misspelt option", finetune("--data.mixture.datasets.faq.loss", "{temprature: 1}"),
            "loss of dataset 'faq': unknown key 'temprature'; did you mean temperature?"),
    ],
    "losses.needs": [
        Row("classes without negatives",
            call("losses.needs:check_needs", "faq", own_negatives_loss, dataset(q=["猫"], p=["狗"]), 8, 1),
            "the loss of dataset 'faq', OwnNegativesLoss, compares each row with its own negatives, and no row has "
            "one; give it a column of negatives, a `label` (`columns: {label: NAME}`), or the task retrieval "
            "(PiccoloLoss), where rows stand against each other"),
    ],
    "releasing.card_folder": [
        Row("no card to fill", run("release", "TMP", "org/name", "--fill-card"),
            "TMP has no README.md; save the model with its card first"),
        Row("a broken card", run("release", "TMP", "org/name", "--fill-card", files={"README.md": "---\na: [\n---\n"}),
            "the metadata of TMP/README.md cannot be read: …"),
        Row("results of another model", run("release", "MODEL", "org/name", "--results", "TMP/0123456789abcdef"),
            "the results in TMP/0123456789abcdef belong to the model…; evaluate this directory, and give…"),
    ],
    "evaluation.results": [
        Row("no results there", call("evaluation.results:read_results", "TMP/nowhere"),
            "the results TMP/nowhere do not exist; give a folder of mteb's JSON files, a .jsonl file or a card (.md)"),
    ],
    "modeling.portable.onnx_export": [
        Row("onnxscript missing for a release", run("release", "MODEL", "org/name", "--onnx", without=["onnxscript"]),
            'exporting to ONNX needs onnx, onnxscript and onnxruntime; run: pip install "piccolo_st[onnx]"'),
    ],
    "modeling.pooling": [
        Row("an unknown character", call("modeling.pooling:instruction_token_ids", tokenizer, "龘："),
            "the instruction '龘：' has characters this tokenizer does not know; write it with characters…"),
        Row("an empty instruction", call("modeling.pooling:InstructionPooling", 32, instruction_ids=lambda w: [[]]),
            "instruction_ids must not hold an empty prefix, which every row begins with, got [[]]"),
        Row("no tokens", pool(),
            "excluding instructions needs input_ids, got the features…; use include_instruction=True…"),
        Row("more tokens than embeddings", pool(input_ids=shape(1, 5)),
            "excluding instructions needs one token…got 4; use include_instruction=True…"),
    ],
    "modeling.portable.limits": [
        Row("a second encoder", call("modeling.portable.limits:check_savable", wrapped_encoder),
            "a checkpoint of this model would not hold it: module '0' holds…; set .model, as in model[0].model…"),
    ],
    "modeling.portable.saving": [
        Row("no pooling at all", call("modeling.portable.saving:save_portable", two_encoders, "TMP/out"),
            "a portable checkpoint must be a Transformer…got ['Transformer'…; save such a model…"),
        Row("no lengths to keep", call("modeling.portable.saving:keep_lengths", "TMP/nowhere", True),
            "TMP/nowhere has no lengths of queries and documents to keep; set them with set_lengths…"),
    ],
    "modeling.positions": [
        Row("no table of positions", call("modeling.positions:extend_positions", without_positions, 600),
            "BertModel has no embeddings.position_embeddings table to extend; only encoders of the BERT…"),
        Row("more than the method tells apart", call("modeling.positions:extend_positions", model, 10**6),
            "hierarchical positions reach to 512 * 512 = 262144 tokens, got 1000000; use method='repeat'"),
        Row("an unknown method", call("modeling.positions:extend_positions", model, 600, "copy"),
            "the method must be 'hierarchical' or 'repeat', got 'copy'"),
    ],
    "_lazy": [
        Row("mteb missing", run("evaluate", "MODEL", "--benchmark", "STS", without=["mteb"]),
            'evaluation on tasks needs mteb; run: pip install "piccolo_st[eval]"'),
    ],
    "config": [
        Row("no such file of tasks", run("evaluate", "MODEL", "--benchmark", "TMP/nowhere.yaml"),
            "TMP/nowhere.yaml does not exist; give the path of a YAML file"),
    ],
    "schema": [
        Row("everything dropped", finetune("--model.name_or_path", "null", "--model.build", "{dropout: 1}"),
            "model.build.dropout must be at least 0 and below 1, got 1"),
    ],
    "modeling.tiny_bert": [
        Row("a width that heads do not share", finetune("--model.name_or_path", "null", "--model.build", "{heads: 3}"),
            "model.build.hidden_size must be a multiple of model.build.heads=3, got 256"),
    ],
}
# fmt: on
