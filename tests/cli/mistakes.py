"""Mistakes that users make. The message of each is in messages.json, which `pytest --update-messages` rewrites.

A command that starts with a flag is appended to `fit --config c.yaml`. `tests.cli.mistaken` writes c.yaml and the rows.
"""

# ruff: noqa: E501 (one mistake per line)
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.cli import mistaken


class Mistake(NamedTuple):
    """A command line that is wrong, with its files.

    `config` is a text of c.yaml (None: all of it) and its replacement; `before` prepares the folder.
    """

    name: str
    typed: str
    config: tuple[str | None, str | bytes] | None = None
    files: dict[str, str | bytes] = {}
    before: Callable[[Path, Path], object] | None = None


# fmt: off
OWN_CLASSES = '''from dataclasses import dataclass

from lit_probsft import Objective


class Plain(Objective):
    def loss(self, tokens):
        return -tokens.log_probs


@dataclass(frozen=True)
class Mean(Plain):
    def loss(self, tokens):
        return -tokens.log_probs.mean()


@dataclass(frozen=True)
class Nothing(Plain):
    def loss(self, tokens):
        pass


@dataclass(frozen=True)
class Needs(Plain):
    @property
    def needs(self):
        return frozenset({"entropi"})


@dataclass(frozen=True)
class Abstract(Objective):
    pass


@dataclass(frozen=True)
class Picky(Plain):
    a: float = 1.0

    def __post_init__(self):
        raise ValueError("a is bad")


@dataclass(frozen=True)
class Asks(Plain):
    a: float


def function(tokens):
    return 1
'''

OWN_ROWS = '''def raises(row):
    raise KeyError('x')


def number(row):
    return 3
'''

PARSING = [
    Mistake('an unknown command', 'ft'),
    Mistake('a file in the place of the command', 'c.yaml'),
    Mistake('an unknown flag', '--data.batchsize 3'),
    Mistake('the beginning of a flag', '--data.batch 3'),
    Mistake('a flag without its group', '--batch_size 3'),
    Mistake('a flag of an optimizer without its group', '--lr 1e-3'),
    Mistake('a flag of the trainer without its group', '--max_epochs 3'),
    Mistake('a misspelt group', '--trainr.max_epochs 3'),
    Mistake('a flag of a group that has no other like it', '--checkpoints.kep 1'),
    Mistake('a flag of an inner group', '--model.generation.temprature 1'),
    Mistake('a flag of adapters', '--model.lora LoRA --model.lora.rank 3'),
    Mistake('a flag of an objective', '--model.objective Power --model.objective.alhpa 3'),
    Mistake('a flag that its objective does not have', '--model.objective.alpha 3'),
    Mistake('an objective without its group', '--objective NegP'),
    Mistake('a word too many', '--resume maybe'),
    Mistake('no value at the end', '--data.batch_size'),
    Mistake('no value in the midst', '--model.objective.alpha --trainer.max_epochs 2'),
    Mistake('no configuration', 'fit --config'),
    Mistake('a configuration that is not there', 'fit --config cc.yaml'),
    Mistake('a configuration that is a folder', 'fit --config .'),
    Mistake('a word for a whole number', '--data.batch_size four'),
    Mistake('a fraction for a whole number', '--data.batch_size 2.5'),
    Mistake('nothing for a whole number', '--data.batch_size='),
    Mistake('null for a whole number', '--data.batch_size null'),
    Mistake("Python's None", '--data.max_length None'),
    Mistake('a word for a number', '--model.optimizer.lr abc'),
    Mistake('no number', '--model.objective Power --model.objective.alpha nan'),
    Mistake('a word for true or false', '--data.packing maybe'),
    Mistake('a number for true or false', '--data.streaming 2'),
    Mistake('a word that is none of several', '--data.overflow trunc'),
    Mistake('another', '--model.normalize token'),
    Mistake('a format of the data module', '--data.format plan'),
    Mistake('a mapping is expected', '--data.watch foo.jsonl'),
    Mistake('a list is expected', '--model.optimizer.betas 0.9'),
    Mistake('a seed', '--seed_everything foo'),
    Mistake('a decay', '--model.schedule.decay lin'),
    Mistake('a text for a schedule', '--model.schedule linear'),
    Mistake('null for a schedule', '--model.schedule null'),
    Mistake('an objective that is not there', '--model.objective NegPP'),
    Mistake('an objective within another', '--model.objective Threshold --model.objective.base Pwer'),
    Mistake('null for an objective', '--model.objective null'),
    Mistake('an optimizer that is not there', '--model.optimizer AdamX'),
    Mistake("torch's optimizer in lower case", '--model.optimizer torch.optim.Adamw'),
    Mistake('a flag of an optimizer', '--model.optimizer.lrr 1'),
    Mistake('no optimizer', '--model.optimizer torch.nn.Linear'),
    Mistake('null for an optimizer', '--model.optimizer null'),
    Mistake('adapters that are not there', '--model.lora Lora'),
    Mistake('true for adapters', '--model.lora true'),
    Mistake('a logger that is not there', '--trainer.logger Tensorbord'),
    Mistake('a callback that is not there', "--trainer.callbacks '[{class_path: Foo}]'"),
    Mistake('a precision that is not there', '--trainer.precision bf17'),
    Mistake('a dtype that is not there', '--model.model.dtype float17'),
    Mistake("a text for a model's configuration", '--model.model.config llama'),
    Mistake('a time of export', '--checkpoints.export lst'),
    Mistake('a side', '--model.objective QuantileThreshold --model.objective.side lef'),
    Mistake('null for the model', '--model null'),
    Mistake('a flag of a source that is a text', '--data.train train.jsonl --data.train.row_function f.x'),
]
"""Flags and their values, refused by the parser."""

YAML = [
    Mistake('a tab', '', config=('  batch_size: 8', '\tbatch_size: 8')),
    Mistake('a quote that is not closed', '', config=('class_path: NLL', 'class_path: "NLL')),
    Mistake('a brace that is not closed', '', config=('{class_path: NLL}', '{class_path: NLL')),
    Mistake('a key twice', '', config=('  batch_size: 8', '  batch_size: 8\n  batch_size: 16')),
    Mistake('a block twice', '', config=('trainer: {', 'data: {batch_size: 3}\ntrainer: {')),
    Mistake('a colon in a text', '', config=('  batch_size: 8', '  chat_template: a: b')),
    Mistake('a template that is not in quotes', '', config=('prompt: question, response: answer}}\n  val', 'prompt: Question: {question}, response: answer}}\n  val')),
    Mistake('too far to the right', '', config=('  batch_size: 8', '    batch_size: 8')),
    Mistake('too far to the left', '', config=('  batch_size: 8', 'batch_size: 8')),
    Mistake('a list', '', config=(None, '- model\n- data\n')),
    Mistake('nothing', '', config=(None, '')),
    Mistake('a text', '', config=(None, 'hello\n')),
    Mistake('bytes', '', config=(None, b'\x80\x81')),
    Mistake('half a letter', '', config=(None, b'model: caf\xe9')),
    Mistake('zeros', '', config=(None, b'\x00\x00')),
    Mistake('lr of the model', '', config=('  generation:', '  lr: 0.1\n  generation:')),
    Mistake('objective at the top', '', config=('trainer: {', 'objective: NegP\ntrainer: {')),
    Mistake('a misspelt block', '', config=('trainer: {', 'trainr: {max_epochs: 1}\ntrainer: {')),
    Mistake('a misspelt block that is empty', '', config=('trainer: {', 'trainr: {}\ntrainer: {')),
    Mistake('batch_size of the trainer', '', config=('trainer: {', 'trainer: {batch_size: 3, ')),
    Mistake('max_epochs of the data', '', config=('  batch_size: 8', '  batch_size: 8\n  max_epochs: 3')),
    Mistake('class for class_path', '', config=('objective: {class_path: NLL}', 'objective: {class: NLL}')),
    Mistake('arguments beside the class_path', '', config=('objective: {class_path: NLL}', 'objective: {class_path: Power, alpha: 2}')),
    Mistake('a list of arguments', '', config=('objective: {class_path: NLL}', 'objective: {class_path: Power, init_args: [1]}')),
    Mistake('a number for a class_path', '', config=('objective: {class_path: NLL}', 'objective: {class_path: 3}')),
    Mistake('a list for a class', '', config=('objective: {class_path: NLL}', 'objective: [NLL]')),
    Mistake('a number for a class', '', config=('objective: {class_path: NLL}', 'objective: 3')),
    Mistake('a class that is not there', '', config=('objective: {class_path: NLL}', 'objective: {class_path: Negp}')),
    Mistake('a class of ours that belongs elsewhere', '', config=('objective: {class_path: NLL}', 'objective: {class_path: ByteTokenizer}')),
    Mistake('a class of others that belongs elsewhere', '', config=('objective: {class_path: NLL}', 'objective: {class_path: torch.nn.Linear}')),
    Mistake('a source for a tokenizer', '', config=('{class_path: ByteTokenizer}', '{class_path: Rows}')),
    Mistake('a tokenizer for a source', '', config=('train: {class_path: Rows', 'train: {class_path: BPETokenizer')),
    Mistake('an objective for a model', '', config=('class_path: RandomCausalLM', 'class_path: NLL')),
    Mistake('an argument that is not there', '', config=('path: train.jsonl, prompt', 'path: train.jsonl, promt')),
    Mistake('an argument of a model', '', config=('      config: {', '      confg: {')),
    Mistake('a required argument', '', config=('path: train.jsonl, prompt', 'prompt')),
    Mistake("a word for an objective's number", '', config=('objective: {class_path: NLL}', 'objective: {class_path: Power, init_args: {alpha: big}}')),
    Mistake('a part that is not there', '', config=('objective: {class_path: NLL}', 'objective: parts/nll.yaml')),
    Mistake('a number for the model', '', config=(None, 'model: 3\n')),
    Mistake('a list for the data', '', config=(None, 'data: [3]\n')),
    Mistake('a text for the trainer', '', config=(None, 'trainer: hello\n')),
    Mistake('a list for the trainer', '', config=(None, 'trainer: [3]\n')),
    Mistake('a text for the data', '', config=(None, 'data: hello\n')),
    Mistake('no model', '', config=(None, 'data: {train: train.jsonl}\n')),
    Mistake('a module that is not there', '', config=(None, 'model: {class_path: my.Module}\n')),
    Mistake('no module of ours', '', config=(None, 'model: {class_path: torch.nn.Linear}\n')),
    Mistake("a schedule's option", '', config=('  generation:', '  schedule: {deca: linear}\n  generation:')),
    Mistake('a part that is a list', '', config=('objective: {class_path: NLL}', 'objective: part.yaml'), files={'part.yaml': '- 1\n'}),
    Mistake('a part that is a text', '', config=('objective: {class_path: NLL}', 'objective: part.yaml'), files={'part.yaml': 'hello\n'}),
    Mistake('a part that is empty', '', config=('objective: {class_path: NLL}', 'objective: part.yaml'), files={'part.yaml': ''}),
    Mistake('a part that is broken', '', config=('objective: {class_path: NLL}', 'objective: part.yaml'), files={'part.yaml': 'class_path: [\n'}),
    Mistake('a part in another encoding', '', config=('objective: {class_path: NLL}', 'objective: part.yaml'), files={'part.yaml': b'\xff\xfe\x00'}),
    Mistake('a part of a flag that is broken', '--model.objective part.yaml', files={'part.yaml': 'a: b: c\n'}),
]
"""Configuration files and their parts."""

OWN = [
    Mistake('no dataclass', '--model.objective mine_of_mistakes.Plain', files={'mine_of_mistakes.py': OWN_CLASSES}),
    Mistake('an abstract class', '--model.objective mine_of_mistakes.Abstract', files={'mine_of_mistakes.py': OWN_CLASSES}),
    Mistake('a required field', '--model.objective mine_of_mistakes.Asks', files={'mine_of_mistakes.py': OWN_CLASSES}),
    Mistake('a function', '--model.objective mine_of_mistakes.function', files={'mine_of_mistakes.py': OWN_CLASSES}),
    Mistake('a class that is not there', '--model.objective mine_of_mistakes.plain', files={'mine_of_mistakes.py': OWN_CLASSES}),
    Mistake('a module that is not there', '--model.objective nowhere_of_mistakes.A'),
    Mistake('a module that imports what is not there, by a flag', '--model.objective lost_of_mistakes.A', files={'lost_of_mistakes.py': 'import nothing_here\n'}),
    Mistake('a module that imports what is not there, in the file', '', config=('objective: {class_path: NLL}', 'objective: {class_path: lost_of_mistakes.A}'), files={'lost_of_mistakes.py': 'import nothing_here\n'}),
    Mistake('a module that is no Python, by a flag', '--model.objective syntax_of_mistakes.A', files={'syntax_of_mistakes.py': 'class A(:\n'}),
    Mistake('a module that is no Python, in the file', '', config=('objective: {class_path: NLL}', 'objective: {class_path: syntax_of_mistakes.A}'), files={'syntax_of_mistakes.py': 'class A(:\n'}),
    Mistake('a module that raises, by a flag', '--model.objective raises_of_mistakes.A', files={'raises_of_mistakes.py': '1 / 0\n'}),
    Mistake('a module that raises, in the file', '', config=('objective: {class_path: NLL}', 'objective: {class_path: raises_of_mistakes.A}'), files={'raises_of_mistakes.py': '1 / 0\n'}),
    Mistake('a constructor that refuses', '--model.objective mine_of_mistakes.Picky', files={'mine_of_mistakes.py': OWN_CLASSES}),
    Mistake('needs that nobody has', '--model.objective mine_of_mistakes.Needs', files={'mine_of_mistakes.py': OWN_CLASSES}),
    Mistake('the mean of the losses', '--model.objective mine_of_mistakes.Mean', files={'mine_of_mistakes.py': OWN_CLASSES}),
    Mistake('no loss', '--model.objective mine_of_mistakes.Nothing', files={'mine_of_mistakes.py': OWN_CLASSES}),
]
"""Classes in a user's module."""

OTHERS = [
    Mistake('export of nothing', 'export'),
    Mistake('export to nowhere', 'export a.ckpt'),
    Mistake('export of what is not there', 'export a.ckpt out'),
    Mistake('export of no checkpoint', 'export train.jsonl out'),
    Mistake('export of three', 'export a b c'),
    Mistake('export with a flag that is cut short', 'export a.ckpt out --overwrit'),
    Mistake('report of nothing', 'report'),
    Mistake('report of what is not there', 'report runs/nope'),
    Mistake('report of a folder without a run', 'report .'),
    Mistake('report with a flag that is not there', 'report runs/nope --htm x'),
    Mistake('configs of nothing', 'configs'),
    Mistake('configs of an unknown kind', 'configs lst'),
    Mistake('configs of no name', 'configs show'),
    Mistake('configs of an unknown name', 'configs show quickstrt'),
    Mistake('configs to a file', 'configs copy quickstart train.jsonl'),
    Mistake('configs with a flag that is not there', 'configs list --all'),
    Mistake('capability of one row', 'capability --sample 1'),
    Mistake('capability of a word', 'capability --sample many'),
    Mistake('capability of no number', 'capability --sample'),
    Mistake('divergence of an unknown split', 'divergence --split tran'),
    Mistake('divergence of an unknown dtype', 'divergence --dtype float16'),
    Mistake('divergence without its model', 'divergence --model-a'),
    Mistake('divergence into no folder', 'divergence --out nope/x.json'),
    Mistake('divergence over a folder', 'divergence --out .'),
    Mistake('preview of no rows', 'preview --rows 0'),
    Mistake('preview of a word', 'preview --rows x'),
    Mistake('preview of an unknown split', 'preview --split val'),
    Mistake('preview into no folder', 'preview --html nope/x.html'),
    Mistake('preview with an unknown flag', 'preview --row 3'),
    Mistake('configs over a file that differs', 'configs copy quickstart out', files={'out/quickstart.yaml': 'x'}),
    Mistake('export over a run', 'export runs/c/checkpoints/last.ckpt runs/c', before=mistaken.a_run),
    Mistake('export over what holds the checkpoint', 'export runs/c/checkpoints/last.ckpt runs --overwrite', before=mistaken.a_run),
    Mistake('export into a file', 'export runs/c/checkpoints/last.ckpt train.jsonl', before=mistaken.a_run),
    Mistake('export of a damaged checkpoint', 'export runs/c/checkpoints/last.ckpt out', before=mistaken.damaged),
    Mistake('export of a run', 'export runs/c out', before=mistaken.a_run),
    Mistake('report on a broken record', 'report runs/c', before=mistaken.broken_record),
    Mistake('report into no folder', 'report runs/c --html nope/x.html', before=mistaken.a_run),
    Mistake('capability with a checkpoint', 'capability --ckpt_path x'),
    Mistake('capability of a stream', 'capability --data.streaming true'),
    Mistake('divergence from a run that is not there', 'divergence'),
    Mistake('divergence on rows that are not there', 'divergence --split test --model-b base'),
    Mistake('preview of rows that are not there', 'preview --split test'),
    Mistake('predict without rows', 'predict --data.validation null'),
    Mistake('validate without rows', 'validate --data.validation null'),
    Mistake('test without rows', 'test'),
    Mistake('validate that resumes', 'validate --resume'),
    Mistake('test that overwrites', 'test --overwrite'),
    Mistake('weights that are not there', 'validate --weights nope'),
    Mistake('weights that are no model', 'validate --weights .'),
    Mistake('validate with a checkpoint that is not there', 'validate --ckpt_path nope.ckpt'),
    Mistake('validate with a damaged checkpoint', 'validate --ckpt_path train.jsonl'),
]
"""Other commands than fit."""

TRAINER = [
    Mistake('a negative number of epochs', '--trainer.max_epochs -3'),
    Mistake('no epochs', '--trainer.max_epochs 0'),
    Mistake('no steps', '--trainer.max_steps 0'),
    Mistake('no batches', '--trainer.limit_train_batches 0'),
    Mistake('too large a share', '--trainer.limit_val_batches 2.5'),
    Mistake('a negative clip', '--trainer.gradient_clip_val -1'),
    Mistake('an unknown clip', '--trainer.gradient_clip_algorithm foo'),
    Mistake('no accumulation', '--trainer.accumulate_grad_batches 0'),
    Mistake('validation every 0 batches', '--trainer.val_check_interval 0'),
    Mistake('validation every 0 epochs', '--trainer.check_val_every_n_epoch 0'),
    Mistake('sanity', '--trainer.num_sanity_val_steps -3'),
    Mistake('no nodes', '--trainer.num_nodes 0'),
    Mistake('no devices', '--trainer.devices 0'),
    Mistake('a word for devices', '--trainer.devices two'),
    Mistake('no GPU', '--trainer.accelerator gpu'),
    Mistake('an unknown accelerator', '--trainer.accelerator gpuu'),
    Mistake('an unknown strategy', '--trainer.strategy dpp'),
    Mistake('an unknown stage', '--trainer.strategy deepspeed_stage_9'),
    Mistake('FSDP1', '--trainer.strategy fsdp'),
    Mistake('spawned processes', '--trainer.strategy ddp_spawn'),
    Mistake('half precision', '--trainer.precision 16-mixed'),
    Mistake('an unknown profiler', '--trainer.profiler simpl'),
    Mistake('a time', '--trainer.max_time foo'),
    Mistake('barebones', '--trainer.barebones true'),
    Mistake('a checkpoint callback', "--trainer.callbacks '[{class_path: ModelCheckpoint}]'"),
    Mistake('best without checkpoints', '--trainer.enable_checkpointing false --checkpoints.export best'),
    Mistake('a share of a batch', '--trainer.limit_train_batches 0.01'),
    Mistake('part of a window', '--trainer.limit_train_batches 3 --trainer.accumulate_grad_batches 2'),
    Mistake("validation after the epoch's end", '--trainer.val_check_interval 1000'),
    Mistake('checkpoints every 0 steps', '--checkpoints.save_every 0'),
]
"""Flags of the trainer."""

RUNS = [
    Mistake('a name with a slash', '--name a/b'),
    Mistake('a name above', '--name ..'),
    Mistake('a long name', '--name xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx'),
    Mistake('runs_dir is a file', '--runs_dir train.jsonl'),
    Mistake('runs_dir below a file', '--runs_dir train.jsonl/x'),
    Mistake('the run is a file', '', before=mistaken.run_is_a_file),
    Mistake('nothing to resume', '--resume'),
    Mistake('resume and overwrite', '--resume --overwrite'),
    Mistake('the run exists', '', before=mistaken.a_run),
    Mistake('resume under another name', '--resume --name othr', before=mistaken.a_run),
    Mistake('resume a checkpoint that is not there', '--resume --ckpt_path x.ckpt', before=mistaken.a_run),
    Mistake('resume from damaged checkpoints', '--resume --trainer.max_epochs 2', before=mistaken.damaged),
    Mistake('resume without checkpoints', '--resume', before=mistaken.no_checkpoints),
    Mistake('resume with other batches', '--resume --data.batch_size 4 --trainer.max_epochs 2', before=mistaken.a_run),
    Mistake('resume with another seed', '--resume --data.seed 3 --trainer.max_epochs 2', before=mistaken.a_run),
    Mistake('resume with another objective', '--resume --model.objective NegP --trainer.max_epochs 2', before=mistaken.a_run),
    Mistake('resume with another optimizer', '--resume --model.optimizer torch.optim.SGD --trainer.max_epochs 2', before=mistaken.a_run),
    Mistake('resume with another model', '--resume --trainer.max_epochs 2', config=('hidden_size: 16', 'hidden_size: 32'), before=mistaken.a_run),
]
"""Run folders, and runs that go on."""

OPTIONS = [
    Mistake('model: no rows to probe', '--model.probe_rows 0'),
    Mistake('model: no memory', '--model.logits_budget_mb 0'),
    Mistake('schedule: final', '--model.schedule.final 2'),
    Mistake('schedule: warmup', '--model.schedule.warmup -1'),
    Mistake('generation: tokens', '--model.generation.max_new_tokens 0'),
    Mistake('generation: top_p', '--model.generation.top_p 2'),
    Mistake('adapters: rank', '--model.lora LoRA --model.lora.r 0'),
    Mistake('adapters: dropout', '--model.lora LoRA --model.lora.dropout 1'),
    Mistake('adapters: target', "--model.lora LoRA --model.lora.target_modules '[foo]'"),
    Mistake('optimizer: learning rate', '--model.optimizer.lr -1'),
    Mistake('optimizer: betas', "--model.optimizer.betas '[0.9, 2]'"),
    Mistake('data: batch_size 0', '--data.batch_size 0'),
    Mistake('data: batch_size -1', '--data.batch_size -1'),
    Mistake('data: share', '--data.validation_fraction 1.5 --data.validation null'),
    Mistake('data: share and set', '--data.validation_fraction 0.1'),
    Mistake('data: share of too few', '--data.validation null --data.validation_fraction 0.001'),
    Mistake('data: max_length 0', '--data.max_length 0'),
    Mistake('data: workers', '--data.num_workers -1'),
    Mistake('data: packing without a length', '--data.packing true'),
    Mistake('data: packing with a pool', '--data.packing true --data.max_length 200 --data.length_pool 3'),
    Mistake('data: a buffer without a stream', '--data.shuffle_buffer 4'),
    Mistake('data: a stream with a share', '--data.streaming true --trainer.max_steps 3 --data.validation null --data.validation_fraction .1'),
    Mistake('data: a stream with a vocabulary to learn', '--data.streaming true --trainer.max_steps 3 --data.tokenizer BPETokenizer'),
    Mistake('data: a stream without an end', '--data.streaming true'),
    Mistake('data: a template for plain text', '--data.chat_template x --data.format plain'),
    Mistake('data: no rows', '--data.train null'),
    Mistake('data: no tokenizer', '--data.tokenizer null'),
    Mistake('data: a small vocabulary', '--data.tokenizer BPETokenizer --data.tokenizer.vocab_size 3'),
    Mistake('data: cache_dir is a file', '--data.cache_dir train.jsonl'),
    Mistake('objective: Focal', '--model.objective Focal --model.objective.gamma -1'),
    Mistake('objective: TrSFT', '--model.objective TrSFT --model.objective.alpha 0'),
    Mistake('objective: InfoSFT', '--model.objective InfoSFT --model.objective.max_prob .3'),
    Mistake('objective: Threshold', '--model.objective Threshold --model.objective.min_prob 3'),
    Mistake('objective: Balanced', '--model.objective Balanced --model.objective.target 0'),
    Mistake('objective: LabelSmoothing', '--model.objective LabelSmoothing --model.objective.epsilon 2'),
    Mistake('objective: QuantileThreshold', '--model.objective QuantileThreshold --model.objective.keep 2'),
    Mistake('objective: IDFT', '--model.objective IDFT --model.objective.beta 0'),
    Mistake('objective: CapabilityPower', '--model.objective CapabilityPower --model.objective.max_alpha 0'),
    Mistake('objective: RunningPower', '--model.objective RunningPower --model.objective.exponent 0'),
    Mistake('objective: GEM', '--model.objective GEM --model.objective.beta 0'),
    Mistake('objective: LogOneMinusP', '--model.objective LogOneMinusP --model.objective.eps 0'),
    Mistake('objective: SCE', '--model.objective SCE --model.objective.alpha 0'),
    Mistake('objective: Cayley', '--model.objective Cayley --model.objective.floor 2'),
    Mistake('objective: TALR', '--model.objective TALR --model.objective.tau -1'),
    Mistake('objective: Huber', '--model.objective Huber --model.objective.delta 0'),
    Mistake('objective: Poly1', '--model.objective Poly1 --model.objective.epsilon -2'),
    Mistake('objective: PSFT', '--model.objective PSFT --model.objective.clip 0'),
    Mistake('objective: EAFT', '--model.objective EAFT --model.objective.k 1'),
    Mistake('objective: Anchored', '--model.objective Anchored --model.objective.weight -1'),
    Mistake('objective: CapabilityPower source', '--model.objective CapabilityPower --model.objective.source nope.json'),
    Mistake('objective: within another', '', config=('objective: {class_path: NLL}', 'objective: {class_path: Threshold, init_args: {base: {class_path: Focal, init_args: {gamma: -1}}}}')),
    Mistake('mixture: of nothing', '--data.train \'{"class_path": "Mixture", "init_args": {"sources": {}}}\''),
    Mistake('mixture: name', '--data.train \'{"class_path": "Mixture", "init_args": {"sources": {"a b": {"class_path": "Rows", "init_args": {"path": "train.jsonl", "prompt": "question", "response": "answer"}}}}}\''),
    Mistake('mixture: weight', '--data.train \'{"class_path": "Mixture", "init_args": {"sources": {"a": {"source": {"class_path": "Rows", "init_args": {"path": "train.jsonl", "prompt": "question", "response": "answer"}}, "weight": 0}}}}\''),
    Mistake('mixture: some weights', '--data.train \'{"class_path": "Mixture", "init_args": {"sources": {"a": {"source": {"class_path": "Rows", "init_args": {"path": "train.jsonl", "prompt": "question", "response": "answer"}}, "weight": 1}, "b": {"class_path": "Rows", "init_args": {"path": "train.jsonl", "prompt": "question", "response": "answer"}}}}}\''),
    Mistake('mixture: cap', '--data.train \'{"class_path": "Mixture", "init_args": {"sources": {"a": {"source": {"class_path": "Rows", "init_args": {"path": "train.jsonl", "prompt": "question", "response": "answer"}}, "cap": 0}}}}\''),
    Mistake('mixture: cap and weight', '--data.train \'{"class_path": "Mixture", "init_args": {"sources": {"a": {"source": {"class_path": "Rows", "init_args": {"path": "train.jsonl", "prompt": "question", "response": "answer"}}, "weight": 1, "cap": 3}}}}\''),
    Mistake('mixture: size', '--data.train \'{"class_path": "Mixture", "init_args": {"sources": {"a": {"class_path": "Rows", "init_args": {"path": "train.jsonl", "prompt": "question", "response": "answer"}}}, "size": 3}}\''),
    Mistake('mixture: in a mixture', '--data.train \'{"class_path": "Mixture", "init_args": {"sources": {"a": {"class_path": "Mixture", "init_args": {"sources": {"b": {"class_path": "Rows", "init_args": {"path": "train.jsonl", "prompt": "question", "response": "answer"}}}}}}}}\''),
    Mistake('mixture: limit of a source', '--data.train \'{"class_path": "Mixture", "init_args": {"sources": {"a": {"class_path": "Rows", "init_args": {"path": "train.jsonl", "limit": 0}}}}}\''),
    Mistake('mixture: weight in the second of two', '--data.train \'{"class_path": "Mixture", "init_args": {"sources": {"a": "train.jsonl"}}}\' --data.validation \'{"class_path": "Mixture", "init_args": {"sources": {"a": {"source": "validation.jsonl", "weight": 0}}}}\''),
    Mistake('mixture: file', '--data.train \'{"class_path": "Mixture", "init_args": {"sources": {"a": "nope.jsonl"}}}\''),
    Mistake('mixture: option', '--data.train \'{"class_path": "Mixture", "init_args": {"sources": {"a": {"source": {"class_path": "Rows", "init_args": {"path": "train.jsonl", "prompt": "question", "response": "answer"}}, "wieght": 1}}}}\''),
]
"""Options of the model, the objective and the data."""

DATA = [
    Mistake('a file that is not there', '--data.train.path trian.jsonl'),
    Mistake('a folder that is not there', '--data.train.path nope/train.jsonl'),
    Mistake('a data set that the hub cannot give', '--data.train.path someone/something'),
    Mistake('an address', '--data.train.path https://example.com/a.jsonl'),
    Mistake('a pattern that nothing fits', "--data.train.path '*.jsn'"),
    Mistake('a suffix', '--data.train.path c.yaml'),
    Mistake('a folder', '--data.train.path .'),
    Mistake('an empty path', '--data.train.path='),
    Mistake('a column', '--data.train.prompt questoin'),
    Mistake('a column in a template', "--data.train.prompt '{questoin} x'"),
    Mistake('a brace that is not closed', "--data.train.prompt '{question'"),
    Mistake('a weight', '--data.train.weight wght'),
    Mistake('a format', '--data.train.format shargpt'),
    Mistake('two formats', '--data.train.messages msgs'),
    Mistake('no column named', '--data.train train.jsonl'),
    Mistake("a function's module", '--data.train.row_function nowhere_of_mistakes.fn'),
    Mistake('a function without a module', '--data.train.row_function fn'),
    Mistake("a function's name", '--data.train.row_function json.lods'),
    Mistake('a limit', '--data.train.limit 0'),
    Mistake('too long', '--data.max_length 40'),
    Mistake('all dropped', '--data.max_length 10 --data.overflow drop'),
    Mistake('a tokenizer that is not there', '--data.tokenizer ./notok'),
    Mistake("a tokenizer's class", '--data.tokenizer BytTokenizer'),
    Mistake('a folder without a tokenizer', '--data.tokenizer .'),
    Mistake('a template file', '--data.chat_template nope.jinja'),
    Mistake('a template that is no Jinja', "--data.chat_template '{% for m in messages %}x'"),
    Mistake('a template that raises', '--data.chat_template "{{ raise_exception(\'no\') }}"'),
    Mistake('a template that leaves things out', '--data.chat_template "{% for m in messages %}{{ m[\'role\'] }}{% endfor %}"'),
    Mistake('an empty file', '', files={'train.jsonl': ''}),
    Mistake('a line that is no JSON', '', files={'train.jsonl': '{"question": "1", "answer": "2"}\n{"question": \n'}),
    Mistake('a line that is a list', '', files={'train.jsonl': '{"question": "1", "answer": "2"}\n[1]\n'}),
    Mistake('an empty answer', '', files={'train.jsonl': '{"question": "1", "answer": "2"}\n{"question": "a", "answer": ""}\n'}),
    Mistake('null for an answer', '', files={'train.jsonl': '{"question": "1", "answer": "2"}\n{"question": "a", "answer": null}\n'}),
    Mistake('a row without a column', '', files={'train.jsonl': '{"question": "1", "answer": "2"}\n{"question": "a"}\n'}),
    Mistake('rows that are all bad', '--data.on_bad_row skip', files={'train.jsonl': '{"question": "a"}\n{"question": "a"}\n{"question": "a"}\n'}),
    Mistake('a line in another encoding', '', files={'train.jsonl': b'{"question": "\xff", "answer": "b"}\n'}),
    Mistake('a file that is no JSON', '--data.train.path t.json ', files={'t.json': '{\n'}),
    Mistake('a CSV file without rows', '--data.train.path t.csv ', files={'t.csv': 'question,answer\n'}),
    Mistake('a CSV line that is too long', '--data.train.path t.csv ', files={'t.csv': 'question,answer\na,b,c\n'}),
    Mistake('a CSV line that is too short', '--data.train.path t.csv ', files={'t.csv': 'question,answer\na\n'}),
    Mistake('a CSV column twice', '--data.train.path t.csv ', files={'t.csv': 'question,question,answer\na,b,c\n'}),
    Mistake('another CSV', '--data.train.path t.csv ', files={'t.csv': 'question;answer\na;b\n'}),
    Mistake('a CSV file in another encoding', '--data.train.path t.csv ', files={'t.csv': b'question,answer\ncaf\xe9,b\n'}),
    Mistake('a parquet file that is none', '--data.train.path t.parquet ', files={'t.parquet': b'PAR1xxxx'}),
    Mistake('a compressed file', '--data.train.path t.jsonl.gz ', files={'t.jsonl.gz': b'x'}),
    Mistake('an unknown role', '', config=('path: train.jsonl, prompt: question, response: answer', 'path: train.jsonl'), files={'train.jsonl': '{"messages": [{"role": "user", "content": "hi"}, {"role": "asistant", "content": "x"}]}\n'}),
    Mistake('a conversation that begins with its end', '', config=('path: train.jsonl, prompt: question, response: answer', 'path: train.jsonl'), files={'train.jsonl': '{"messages": [{"role": "assistant", "content": "yo"}, {"role": "user", "content": "hi"}]}\n'}),
    Mistake('two turns of the user', '', config=('path: train.jsonl, prompt: question, response: answer', 'path: train.jsonl'), files={'train.jsonl': '{"messages": [{"role": "user", "content": "hi"}, {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}\n'}),
    Mistake('no answer', '', config=('path: train.jsonl, prompt: question, response: answer', 'path: train.jsonl'), files={'train.jsonl': '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}, {"role": "user", "content": "hi"}]}\n'}),
    Mistake('no turns', '', config=('path: train.jsonl, prompt: question, response: answer', 'path: train.jsonl'), files={'train.jsonl': '{"messages": []}\n'}),
    Mistake('a turn without a text', '', config=('path: train.jsonl, prompt: question, response: answer', 'path: train.jsonl'), files={'train.jsonl': '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant"}]}\n'}),
    Mistake('nothing to learn', '', config=('path: train.jsonl, prompt: question, response: answer', 'path: train.jsonl'), files={'train.jsonl': '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo", "train": false}]}\n'}),
    Mistake('labels that are too short', '', config=('path: train.jsonl, prompt: question, response: answer', 'path: train.jsonl'), files={'train.jsonl': '{"input_ids": [1, 2], "labels": [1]}\n'}),
    Mistake('unknown columns', '', config=('path: train.jsonl, prompt: question, response: answer', 'path: train.jsonl'), files={'train.jsonl': '{"a": "a", "b": "b"}\n'}),
    Mistake('an id that is no token', '', config=('path: train.jsonl, prompt: question, response: answer', 'path: train.jsonl'), files={'train.jsonl': '{"input_ids": [1, 999999], "labels": [-100, 999999]}\n'}),
    Mistake('rows with turns to answer', 'predict --data.predict t.jsonl', files={'t.jsonl': '{"text": "a"}\n'}),
    Mistake('a function that raises', '--data.train.row_function rows_of_mistakes.raises', files={'rows_of_mistakes.py': OWN_ROWS}),
    Mistake('a function that returns a number', '--data.train.row_function rows_of_mistakes.number', files={'rows_of_mistakes.py': OWN_ROWS}),
]
"""Rows, tokenizers and templates."""

MODEL = [
    Mistake('a folder without weights', '--model.model m', before=mistaken.no_weights),
    Mistake('weights that are no weights', '--model.model m', before=mistaken.no_safetensors),
    Mistake('weights that are cut short', '--model.model m', before=mistaken.cut),
    Mistake('weights with a hole', '--model.model m', before=mistaken.a_hole),
    Mistake('a folder without config.json', '--model.model m', before=mistaken.no_config),
    Mistake('a config.json that is no JSON', '--model.model m', before=mistaken.broken_config),
    Mistake('no causal model', '--model.model m', before=mistaken.t5),
    Mistake('weights of other shapes', '--model.model m', before=mistaken.wide),
    Mistake('a pickle', '--model.model m', before=mistaken.a_pickle),
    Mistake('a folder that is not there', '--model.model ./none'),
    Mistake('a file', '--model.model c.yaml'),
    Mistake('a model that the hub cannot give', '--model.model someone/model'),
    Mistake('an attention that is not installed', '--model.model.attn_implementation flash_attention_2'),
    Mistake('an unknown type', '', config=('model_type: llama', 'model_type: lama')),
    Mistake('no type', '', config=('model_type: llama, ', '')),
    Mistake('an unknown field', '', config=('{model_type: llama, hidden', '{model_type: llama, hiden')),
    Mistake('another kind of model', '', config=('model_type: llama, hidden_size: 16', 'model_type: t5, d_model: 16')),
    Mistake('heads', '', config=('num_attention_heads: 2', 'num_attention_heads: 3')),
    Mistake('a vocabulary that is too small', '', config=('{model_type: llama', '{vocab_size: 50, model_type: llama')),
    Mistake('too few positions', '', config=('max_position_embeddings: 256', 'max_position_embeddings: 20')),
]
"""Models."""
