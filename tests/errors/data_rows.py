"""Errors in the data of a run, and in the parts that read, sample and collate them."""

from __future__ import annotations

from piccolo_st.data.specs import DatasetSpec
from tests.errors.acts import (
    FAQ,
    Row,
    batch,
    call,
    collate,
    collator,
    dataset,
    faq,
    finetune,
    jsonl,
    own_samplers,
    parquet,
    plain_loader,
    prepare,
    run,
    tasks,
)

STS = {"name": "Own", "type": "STS", "data": "pairs.jsonl"}
BEIR = {
    "beir/corpus.jsonl": jsonl([{"_id": "d1", "text": "猫"}, {"_id": "d2", "text": "狗"}]),
    "beir/queries.jsonl": jsonl([{"_id": "q1", "text": "鱼"}]),
}
OTHER_LABELS = [{"text": "猫", "label": "a"}, {"text": "狗", "label": "a"}, {"text": "鱼", "label": "a"}]

# fmt: off
ROWS: dict[str, list[Row]] = {
    "data.beir": [
        Row(
            "judgements without a header",
            faq("source=beir", files={**BEIR, "beir/qrels.tsv": "q1\td1\t1\nq2\td2\t1\n"}),
            "TMP/beir/qrels.tsv must begin with the line query-id TAB corpus-id TAB score, got the columns q1, d1, 1",
        ),
    ],
    "mining.candidates": [
        Row("fewer than no negatives", prepare("mine", "--mine.settings", "{num_negatives: -1}"),
            "num_negatives of mining must be at least 0, got -1"),
        Row("a range of two for seven", prepare("mine", "--mine.settings", "{num_negatives: 7, range_max: 2}"),
            "range_min=0 to range_max=2 of mining leaves fewer candidates than num_negatives=7; raise range_max"),
    ],
    "batches.collator": [
        Row("none of the negatives", lambda world: collator(num_negatives=0)(world),
            "num_negatives must be None, for all, or at least 1, got 0"),
        Row("rows of two kinds", collate({"query": "猫", "positive": "狗"}, {"query": "猫"}),
            "all rows of a batch must have the same columns, got ['query', 'positive'] in row 0 and ['query'] in row "
            "1; draw the batches with HomogeneousBatchSampler"),
        Row("a number for a text", collate({"query": "猫", "positive": 3}),
            "row 0 of the batch must hold text in column 'positive', got 3; drop such rows, or call a column "
            "of labels one of label, labels, score, scores"),
        Row("labels alone", collate({"label": 3}),
            "a batch needs a column of texts, got only label in row 0 of the batch; give the dataset one"),
        Row("a row without a positive", collate({"query": "猫", "positive": ["狗"]}, {"query": "鱼", "positive": []}),
            "row 1 of the batch must list at least one text in column 'positive', got none; drop such rows"),
    ],
    "curation.duplicates": [
        Row("a similarity above 1", prepare("dedup", "--dedup.near", "80"),
            "near of dedup must be above 0 and at most 1, got 80.0"),
        Row("shingles of nothing", prepare("dedup", "--dedup.shingle", "0"),
            "shingle of dedup must be at least 1, got 0"),
    ],
    "curation.quality": [
        Row("a share above 1", prepare("filter", "--filter.min_han", "30"),
            "min_han of filter must be a share from 0 to 1, got 30.0"),
        Row("a pool of none", prepare("filter", "--filter.pool", "0"),
            "pool of filter must be at least 1, got 0"),
        Row("a rank beyond the pool", prepare("filter", "--filter.top_k", "5", "--filter.pool", "4"),
            "top_k of filter must be at most pool=4, beyond which every row is kept, got 5"),
        Row("OpenCC missing", prepare("filter", "--filter.simplify", "true", without=["opencc"]),
            'simplify needs OpenCC; run: pip install "piccolo_st[data]"'),
        Row("faiss missing", prepare("filter", "--filter.top_k", "2", without=["faiss"]),
            'the consistency filter needs faiss; run: pip install "piccolo_st[data]"'),
    ],
    "data.holdout": [
        Row(
            "nothing left to train on",
            faq("holdout={queries: 1, min_corpus: 1}", rows=[FAQ[0], {**FAQ[1], "positive": FAQ[0]["positive"]}]),
            "dataset 'faq' has no row left without the held-out texts; lower `holdout.queries`",
        ),
        Row("scored pairs held out", faq("task=sts", "source=pairs.jsonl", "holdout={queries: 2}"),
            "the holdout of dataset 'faq' needs rows of one query and one positive, got the columns sentence1, "
            "sentence2, label; remove `holdout` or set `positives: all`"),
        Row("all queries held out", faq("holdout={queries: 100, min_corpus: 5}"),
            "the holdout of dataset 'faq' must leave queries to train on, got 100 of the 100 distinct ones; lower "
            "`queries`"),
        Row("a corpus too small", faq("holdout={queries: 10}"),
            "the holdout of dataset 'faq' must search among at least 10000 distinct positives, got 100; lower "
            "`min_corpus` or give it more rows"),
    ],
    "data.jionlp": [
        Row("a set that jionlp has not", faq("source=jionlp:word"),
            "the source of dataset 'faq' must be one of jionlp:words, jionlp:sayings, jionlp:characters, got "
            "'jionlp:word'"),
        Row("jionlp missing", faq("source=jionlp:words", without=["jionlp"]),
            "the source 'jionlp:words' of dataset 'faq' needs jionlp; run: pip install "
            '"piccolo_st[quickstart]"'),
    ],
    "mining.lexical": [
        Row("bm25s missing", prepare("mine", "--mine.model", "bm25", without=["bm25s"]),
            'BM25 needs bm25s; run: pip install "piccolo_st[data]"'),
    ],
    "mining.miner": [
        Row(
            "an unknown miner",
            call("mining.miner:mine_negatives", dataset(query=["猫"], positive=["狗"]), "bm52"),
            "model of mining must be a SentenceTransformer, 'lexical', 'bm25' or 'random', got 'bm52'",
        ),
        Row("no positives", call("mining.miner:mine_negatives", dataset(query=["猫"]), "random"),
            "mining needs the column 'positive', got the columns query; only retrieval data can be mined"),
        Row(
            "lists of positives",
            call("mining.miner:mine_negatives", dataset(query=["猫"], positive=[["狗"]]), "random"),
            "mining needs one text a row in 'positive', got list<…>",
        ),
    ],
    "data.mixture": [
        Row("a mixture that is not there", finetune("--data.mixture", "TMP/nowhere.yaml"),
            "the configuration TMP/nowhere.yaml does not exist; give the path of a YAML file"),
        Row("a mixture of none", finetune(files={"mixture.yaml": {"policy": "drop"}}),
            "TMP/mixture.yaml names no datasets; give `datasets` at least one"),
        Row("a mixture that begins with itself", finetune(files={"mixture.yaml": {"file": "mixture.yaml"}}),
            "TMP/mixture.yaml begins with itself: TMP/mixture.yaml; remove one `file`"),
        Row("a misspelt default", finetune("--data.mixture.defaults", "{weigth: 2}"),
            "unknown key 'weigth' in defaults of TMP/mixture.yaml; did you mean weight?"),
        Row("a name that is none", finetune("--data.mixture.datasets", "{'a/b': {}}"),
            "the name of a dataset in TMP/mixture.yaml must be letters, digits, '_', '-' and '.', got 'a/b'"),
        Row("rows visited never", faq("repeats=0"),
            "repeats of dataset 'faq' of TMP/mixture.yaml must be at least 1, got 0"),
        Row("a weight below 0", faq("weight=-1"),
            "weight of dataset 'faq' of TMP/mixture.yaml must be a positive number, got -1.0"),
        Row("scores from high to low", faq("score_range=[1, 0]"),
            "score_range of dataset 'faq' of TMP/mixture.yaml must be [lowest, highest], got [1.0, 0.0]"),
        Row("no query held out", faq("holdout={queries: 0}"),
            "holdout.queries of dataset 'faq' of TMP/mixture.yaml must be at least 1, got 0"),
    ],
    "batches.permutation": [
        Row("a permutation of none", call("batches.permutation:Permutation", 0, 1),
            "the size of a permutation must be from 1 to 2**40, got 0"),
    ],
    "batches.plan": [
        Row("an unknown mixing", finetune("--data.mixing", "sometimes"),
            "mixing must be one of proportional, weights, temperature, got 'sometimes'"),
        Row("an unknown fate of small sets", finetune("--data.small_datasets", "ignore"),
            "small_datasets must be one of error, drop, repeat, got 'ignore'"),
        Row("too few rows", finetune("--data.small_datasets", "error", "--data.batch_size", "200"),
            "dataset 'faq' has 100 rows, fewer than the 200 that all ranks read in one optimizer step; use a smaller "
            "batch, or small_datasets='repeat' or 'drop'"),
        Row("too few rows anywhere", finetune("--data.batch_size", "200"),
            "no dataset is left to draw from: they have [100, 95] rows, and one optimizer step reads [200, 200] of "
            "them; use a smaller batch or small_datasets='repeat'"),
        Row("an exponent below 0", finetune("--data.mixing", "temperature", "--data.mixing_exponent", "-1"),
            "exponent must be at least 0, got -1.0"),
        Row("weights of 0", batch(mixing="weights", weights=[0, 0]),
            "weights must not all be 0, got [0, 0]"),
        Row("half a row", faq("batch_multiple=0.3"),
            "batch_multiples of dataset 'faq' times the batch size 8 must be whole rows, got 0.3"),
        Row("a batch of less than a row", faq("batch_multiple=0.0000000000001"),
            "batch_multiples of dataset 'faq' must make at least 1 row a device, got 8e-13; raise it"),
        Row("no dataset", call("batches.plan:BatchPlan", lambda w: [], 4),
            "a plan needs at least one dataset, got none"),
        Row("an empty dataset", call("batches.plan:BatchPlan", lambda w: [0], 4),
            "dataset 0 must have 1 to 2**40 rows, got 0; leave it out"),
        Row("a batch of none", batch(world_size=0),
            "world_size must be at least 1, got 0"),
        Row("weights without mixing by them", batch(weights=[1, 2]),
            "weights must go with mixing='weights', got mixing='proportional' and weights=(1, 2)"),
        Row("too many weights", batch(mixing="weights", weights=[1, 2, 3]),
            "weights must have one value for each of the 2 datasets, got 3"),
        Row("a repeat below 0", batch(repeats=[1, -1]),
            "repeats of dataset 1 must be at least 0, got -1"),
        Row(
            "a position of another batch size",
            lambda world: batch()(world).plan.position(3),
            "a position must be a multiple of the 4 samples that all ranks read at a step, got 3; go on with the "
            "global batch size that the position was written with",
        ),
    ],
    "curation.stages": [
        Row("another's output", prepare("check", files={"out/check/made_of.json": '{"identity": "x"}'}),
            "TMP/out/check holds the output of another mixture or other settings (see TMP/out/check/made_of.json); "
            "choose another `data.output` or delete the folder"),
        Row("a folder in use", prepare("check", files={"out/check/notes.txt": ""}),
            "TMP/out/check must be empty or of this project's making, got other files; choose another `data.output`"),
        Row("datatrove missing", prepare("check", "--executor.kind", "local", without=["datatrove.executor"]),
            "executor 'local', unlike 'here', needs datatrove; run: pip install \"piccolo_st[data]\""),
        Row(
            "an option that datatrove has not",
            prepare("check", "--executor.kind", "local", "--executor.options", "{partitoin: cpu}"),
            "executor.options must suit datatrove's local executor, got {'partitoin': 'cpu'}: …",
        ),
    ],
    "curation.steps": [
        Row("no data", run("prepare", "check", "TMP/empty.yaml", files={"empty.yaml": {"data": {}}}),
            "no data are named; give a mixture file, or a file whose section `data` has a `mixture`"),
    ],
    "data.presets": [
        Row(
            "no pair scored high enough",
            faq("source=pairs.jsonl", "preset={name: scored_pairs, threshold: 2}"),
            "the preset 'scored_pairs' of dataset 'faq' must leave at least one row, got none of 95 (95 score below "
            "the threshold); check `preset` and `columns`",
        ),
        Row("one class alone", faq("task=classification", rows=OTHER_LABELS),
            "the preset 'classes' of dataset 'faq' needs at least two labels, got 'a' in every row; check `columns`"),
    ],
    "batches.reading": [
        Row("a name too few", call("batches.reading:HomogeneousDataset", lambda w: [[1], [2]], lambda w: ["faq"]),
            "2 datasets need as many names, got ['faq']"),
        Row(
            "rows of two datasets",
            lambda world: call(
                "batches.reading:HomogeneousDataset", lambda w: [dataset(query=["猫"])(w), dataset(query=["狗"])(w)]
            )(world).__getitems__([0, 1]),
            "a homogeneous batch must have rows of one dataset, got rows of the datasets [0, 1]; draw it with "
            "HomogeneousBatchSampler",
        ),
    ],
    "mining.limits": [
        Row("a length of what cuts nothing",
            call("mining.limits:check_dataset", lambda w: [None],
                 lambda w: DatasetSpec("faq", "faq.jsonl", "retrieval", query_length=8)),
            "query_length and document_length of dataset 'faq': two lengths need a Transformer with a tokenizer as the "
            "first module, got None"),
    ],
    "data.columns": [
        Row("a role that is none", faq("columns={quest: a}"),
            "unknown key 'quest' in columns of dataset 'faq'; did you mean query?"),
        Row("a column that is not there", faq("columns={query: question}"),
            "query of columns of dataset 'faq' must be a column of TMP/faq.jsonl, got 'question'; its columns are "
            "query, positive"),
        Row("no column for a role", faq(rows=[{"query": "猫", "negative": "狗"}]),
            "dataset 'faq' is for retrieval and needs a column for 'positive', got TMP/faq.jsonl with the columns "
            "query, negative; say which with `columns: {positive: NAME}`"),
    ],
    "data.cells": [
        Row("numbers for texts", faq("source=rows.parquet", files={"rows.parquet": parquet(query=[1], positive=[2])}),
            "column 'query' of TMP/rows.parquet must hold text to be the query of dataset 'faq', got the type int64; "
            "convert it, or name another in `columns`"),
        Row(
            "a later file without a column",
            faq(
                "source='*.parquet'",
                files={
                    "a.parquet": parquet(query=["猫"], positive=["狗"]),
                    "b.parquet": parquet(query=["猫"], answer=["狗"]),
                },
            ),
            "every file of dataset 'faq' must have the column 'positive', as another has, got TMP/b.parquet with "
            "the columns query, answer; rename it there",
        ),
    ],
    "batches.sampler": [
        Row("no batch size", batch(batch_size=None),
            "HomogeneousBatchSampler needs batch_samplers, as a trainer passes them, or batch_size"),
        Row("a stream", call("batches.sampler:HomogeneousBatchSampler", lambda w: iter([]), batch_size=4),
            "HomogeneousBatchSampler reads rows by their number, which a list_iterator does not allow; use a "
            "datasets.Dataset, which stays on disk as well"),
        Row(
            "a sampler of one's own",
            call("batches.sampler:HomogeneousBatchSampler", lambda w: [1, 2], own_samplers),
            "HomogeneousBatchSampler orders the rows itself and would ignore the BatchSampler of args.batch_sampler; "
            "leave that at its default",
        ),
        Row("a dataloader without it", call("batches.sampler:check_dataloader", plain_loader),
            "the dataloader must draw its batches from a HomogeneousBatchSampler, got BatchSampler; set "
            "args.multi_dataset_batch_sampler and args.batch_sampler"),
    ],
    "curation.shingles": [
        Row("too few permutations", prepare("dedup", "--dedup.permutations", "1", "--dedup.near", "0.1"),
            "finding pairs of similarity 0.1 with probability 0.99 needs more permutations, got 1; raise "
            "`permutations`, or the similarity"),
        Row("rensa missing", prepare("dedup", without=["rensa"]),
            'near-duplicate search needs rensa; run: pip install "piccolo_st[data]"'),
    ],
    "data.sources": [
        Row("no such file", faq("source=nowhere.jsonl"),
            "the source of dataset 'faq' does not exist: TMP/nowhere.jsonl; relative sources start at the mixture's "
            "`root`, by default the folder of its file"),
        Row("half a BEIR folder", faq("source=beir", files=BEIR),
            "the BEIR folder of dataset 'faq' must hold corpus.jsonl, queries.jsonl and qrels/train.tsv (or "
            "qrels.tsv), got TMP/beir with ['corpus.jsonl', 'queries.jsonl']"),
        Row("a folder of two formats", faq("source=mixed", files={"mixed/a.csv": "a", "mixed/b.tsv": "b"}),
            "the source of dataset 'faq' must be files of one format, got the folder TMP/mixed with 2 formats; name "
            "a file, a glob such as shards/*.parquet, or the `format`"),
        Row("an unknown format", faq("source=rows.txt", files={"rows.txt": "猫"}),
            "no format is known for rows.txt of dataset 'faq'; name one with `format`: jsonl, json, csv, tsv, "
            "parquet, arrow"),
        Row("JSON cut short", faq("source=rows.json", files={"rows.json": '[{"query": '}),
            "TMP/rows.json of dataset 'faq' cannot be read as json: …; check that it is complete and readable"),
        Row("JSON of another kind", faq("source=rows.json", files={"rows.json": "{}"}),
            "TMP/rows.json of dataset 'faq' cannot be read as json: it must hold a list of objects, got dict; check "
            "that it is complete and readable"),
        Row("a header with a column twice", faq("source=rows.csv", files={"rows.csv": "query,query\n"}),
            "TMP/rows.csv of dataset 'faq' cannot be read as csv: its header names a column twice: ['query', "
            "'query']; check that it is complete and readable"),
        Row("no Parquet", faq("source=rows.parquet", files={"rows.parquet": "PAR1"}),
            "TMP/rows.parquet of dataset 'faq' cannot be read as parquet: …; check that it is complete and readable"),
        Row("a Hub dataset out of reach", faq("source=org/nowhere"),
            "the Hub dataset 'org/nowhere' of dataset 'faq' cannot be loaded (revision None, subset None, split "
            "train): …; give a file, or a dataset that this machine can reach"),
    ],
    "data.build": [
        Row("a revision of a file", faq("revision=abc"),
            "revision of dataset 'faq' must be left out, got 'abc': a source of the format jsonl has none"),
    ],
    "data.report": [
        Row("no rows", faq(rows=""),
            "dataset 'faq' is empty: faq.jsonl has no rows; remove it or give it data"),
        Row("a faulty row under the policy error", faq("policy=error", rows=[{**FAQ[0], "query": ""}, *FAQ]),
            "dataset 'faq' has a faulty row and the policy 'error': TMP/faq.jsonl, row 1: query: empty (query='' | "
            "positive='一一的结果'); mend such rows or set `policy: drop`"),
        Row("more faults than rows", faq(rows=[{**row, "query": ""} for row in FAQ]),
            "100 of the 100 rows of dataset 'faq' are faulty (100 query: empty), more than max_rejected=0.5; look at "
            "…/rejects.jsonl, and check `columns` and `task`"),
        Row("nothing but faults", faq("max_rejected=1", rows=[{**row, "query": ""} for row in FAQ]),
            "dataset 'faq' has no row left of 100: 100 query: empty"),
    ],
    "config": [
        Row("a misspelt field", faq("tsak=sts"),
            "unknown key 'tsak' in dataset 'faq' of TMP/mixture.yaml; did you mean task?"),
        Row("an unknown task", faq("task=retrieve"),
            "task of dataset 'faq' of TMP/mixture.yaml must be one of retrieval, sts, pair, classification, "
            "clustering, got 'retrieve'"),
        Row("a dataset without its task", finetune("--data.mixture.datasets.more", "{source: faq.jsonl}"),
            "dataset 'more' of TMP/mixture.yaml has no 'task', which is required; add it"),
        Row("a dataset that is a word", finetune("--data.mixture.datasets.more", "faq.jsonl"),
            "dataset 'more' of TMP/mixture.yaml must be a mapping of keys to values, got str 'faq.jsonl'"),
        Row("a word for a number", faq("max_rows=many"),
            "max_rows of dataset 'faq' of TMP/mixture.yaml must be of type int, got str 'many'"),
        Row("a word for a list", faq("labels=good"),
            "labels of dataset 'faq' of TMP/mixture.yaml must be a list, got str 'good'"),
        Row("a word for a mapping", faq("columns=query"),
            "columns of dataset 'faq' of TMP/mixture.yaml must be a mapping of keys to values, got str 'query'"),
        Row("a misspelt setting of mining", faq("mining={num_negativs: 2}", "--data.mining_model=lexical"),
            "unknown key 'num_negativs' in mining of dataset 'faq'; did you mean num_negatives?"),
        Row("a misspelt local task field", tasks({**STS, "dta": "x"}),
            "unknown key 'dta' in task 1 of TMP/own.yaml; did you mean data?"),
        Row("a misspelt part of the encoder", finetune("--model.name_or_path", "null", "--model.build", "{layer: 2}"),
            "unknown key 'layer' in model.build; did you mean layers?"),
    ],
}
# fmt: on
