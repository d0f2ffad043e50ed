"""Run by torchrun: two steps of VPOTrainer with an advantage per set and per answer, and what
this process saw, in FOLDER/RANK.pickle.

Usage: vpo_two.py FOLDER
"""

import os
import pickle
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from trl_case import G, arguments, has_a, random_texts, rows, scripted, short, small_model, small_tokenizer

from vpo_lab import VPOConfig, VPOTrainer

folder = Path(sys.argv[1])
rank, tokenizer = int(os.environ["RANK"]), small_tokenizer()
saw = {}
for credit, method in (("set", "vpo"), ("answer", "vpo_credit")):
    trainer = scripted(VPOTrainer, random_texts(rank))(
        model=small_model(tokenizer),
        reward_funcs=[has_a, short],
        args=arguments(
            VPOConfig, folder / "out", method=method, per_device_train_batch_size=G // 2 * 3
        ),  # groups lie across processes
        train_dataset=rows(),
        processing_class=tokenizer,
    )
    trainer.train()
    log, weights = trainer.state.log_history, trainer.model.state_dict()
    saw[credit] = {"batches": trainer.batches, "log": log, "weights": weights}
(folder / f"{rank}.pickle").write_bytes(pickle.dumps(saw))
