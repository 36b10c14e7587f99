"""Train and evaluate RecBole's SASRec; run by sasrec_epoch.py, with the Python RecBole is installed for.

    python recbole_sasrec.py FOLDER RESULT.json [--threads 2] [--epochs 1] [--batch-size 2048] …

FOLDER holds beauty/beauty.inter. Network, loss and RecBole's own training and evaluation loops are untouched; only
dropout of attention weights, which ours has not, is left out. Writes seconds of each epoch and evaluation, how many
targets there were, and what was reached.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed

parser = argparse.ArgumentParser()
parser.add_argument("folder")
parser.add_argument("result")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--epochs", type=int, default=1)
parser.add_argument("--batch-size", type=int, default=2048)
parser.add_argument("--max-length", type=int, default=50)
parser.add_argument("--hidden-size", type=int, default=64)
parser.add_argument("--dropout", type=float, default=0.5)
args = parser.parse_args()
sys.argv = sys.argv[:1]  # RecBole reads the command line too
torch.set_num_threads(args.threads)

settings = {
    "data_path": args.folder,
    "checkpoint_dir": str(Path(args.folder, "saved")),
    "log_wandb": False,
    "use_gpu": False,
    "show_progress": False,
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "eval_args": {"split": {"LS": "valid_and_test"}, "group_by": "user", "order": "TO", "mode": "full"},
    "MAX_ITEM_LIST_LENGTH": args.max_length,
    "hidden_size": args.hidden_size,
    "inner_size": 4 * args.hidden_size,
    "n_layers": 2,
    "n_heads": 1,
    "hidden_dropout_prob": args.dropout,
    "attn_dropout_prob": 0.0,
    "loss_type": "CE",
    "train_neg_sample_args": None,
    "train_batch_size": args.batch_size,
    "metrics": ["Hit", "NDCG", "MRR"],
    "topk": [5, 10, 20],
    "valid_metric": "NDCG@10",
}
config = Config(model="SASRec", dataset="beauty", config_dict=settings)
init_seed(config["seed"], config["reproducibility"])
dataset = create_dataset(config)
train_data, _, test_data = data_preparation(config, dataset)
model = get_model("SASRec")(config, train_data._dataset)
trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)

epochs, evaluations, losses = [], [], []
reached: dict[str, float] = {}
for epoch in range(args.epochs):
    started = time.perf_counter()
    losses.append(trainer._train_epoch(train_data, epoch) / len(train_data))
    epochs.append(time.perf_counter() - started)
    started = time.perf_counter()
    reached = dict(trainer.evaluate(test_data, load_best_model=False))
    evaluations.append(time.perf_counter() - started)

found = {
    "epochs": epochs,
    "evaluations": evaluations,
    "losses": losses,
    "targets": len(train_data._dataset),
    "cases": len(test_data._dataset),
    "items": dataset.item_num - 1,
    "reached": {name.lower(): float(value) for name, value in reached.items()},
}
Path(args.result).write_text(json.dumps(found))
