"""Mistakes that users make. The message of each is in messages.json, which `pytest --update-messages` rewrites.

A command that starts with a flag is appended to `fit --config c.yaml`. `tests.cli.mistake_files` writes c.yaml and the rows.
"""

# ruff: noqa: E501 (one mistake per line)
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.cli import mistake_files


class Mistake(NamedTuple):
    """A command line that is wrong, with its files.

    `config` is a part of c.yaml (None for the whole file) and its replacement; `before` prepares the folder.
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
    Mistake('a file instead of a command', 'c.yaml'),
    Mistake('an unknown flag', '--data.batchsize 3'),
    Mistake('a prefix of a flag', '--data.batch 3'),
    Mistake('a flag without its group', '--batch_size 3'),
    Mistake('a flag of an optimizer without its group', '--lr 1e-3'),
    Mistake('a flag of the trainer without its group', '--max_epochs 3'),
    Mistake('a misspelled group', '--trainr.max_epochs 3'),
    Mistake('a misspelled flag of a group', '--checkpoints.kep 1'),
    Mistake('a misspelled flag of a nested group', '--model.generation.temprature 1'),
    Mistake('a misspelled flag of adapters', '--model.lora LoRA --model.lora.rank 3'),
    Mistake('a misspelled flag of an objective', '--model.objective Power --model.objective.alhpa 3'),
    Mistake('a flag of another objective', '--model.objective.alpha 3'),
    Mistake('an objective without its group', '--objective NegP'),
    Mistake('an extra word', '--resume maybe'),
    Mistake('a last flag without a value', '--data.batch_size'),
    Mistake('an unknown flag without a value', '--bogus'),
    Mistake('a flag in the middle without a value', '--model.objective Power --model.objective.alpha --trainer.max_epochs 2'),
    Mistake('a --config without a file', 'fit --config'),
    Mistake('a missing configuration file', 'fit --config cc.yaml'),
    Mistake('a configuration that is a folder', 'fit --config .'),
    Mistake('a word for a whole number', '--data.batch_size four'),
    Mistake('a fraction for a whole number', '--data.batch_size 2.5'),
    Mistake('an empty value for a whole number', '--data.batch_size='),
    Mistake('null for a whole number', '--data.batch_size null'),
    Mistake("Python's None", '--data.max_length None'),
    Mistake('a word for a number', '--model.optimizer.lr abc'),
    Mistake('nan for a number', '--model.objective Power --model.objective.alpha nan'),
    Mistake('a word for true or false', '--data.packing maybe'),
    Mistake('a number for true or false', '--data.streaming 2'),
    Mistake('a misspelled choice', '--data.overflow trunc'),
    Mistake('another misspelled choice', '--model.normalize token'),
    Mistake('a misspelled format of the data module', '--data.format plan'),
    Mistake('a text for a mapping', '--data.watch foo.jsonl'),
    Mistake('a number for a list', '--model.optimizer.betas 0.9'),
    Mistake('a word for a seed', '--seed_everything foo'),
    Mistake('a seed out of range', '--seed_everything -1'),
    Mistake('a misspelled decay', '--model.schedule.decay lin'),
    Mistake('a text for a schedule', '--model.schedule linear'),
    Mistake('null for a schedule', '--model.schedule null'),
    Mistake('an unknown objective', '--model.objective NegPP'),
    Mistake('an unknown objective within another', '--model.objective Threshold --model.objective.base Pwer'),
    Mistake('null for an objective', '--model.objective null'),
    Mistake('an unknown optimizer', '--model.optimizer AdamX'),
    Mistake("torch's optimizer in lower case", '--model.optimizer torch.optim.Adamw'),
    Mistake('a misspelled flag of an optimizer', '--model.optimizer.lrr 1'),
    Mistake('a class that is no optimizer', '--model.optimizer torch.nn.Linear'),
    Mistake('null for an optimizer', '--model.optimizer null'),
    Mistake('unknown adapters', '--model.lora Lora'),
    Mistake('true for adapters', '--model.lora true'),
    Mistake('an unknown logger', '--trainer.logger Tensorbord'),
    Mistake('an unknown callback', "--trainer.callbacks '[{class_path: Foo}]'"),
    Mistake('an unknown precision', '--trainer.precision bf17'),
    Mistake('an unknown dtype', '--model.model.dtype float17'),
    Mistake("a text for a model's configuration", '--model.model.config llama'),
    Mistake('a misspelled time of export', '--checkpoints.export lst'),
    Mistake('a misspelled side', '--model.objective QuantileThreshold --model.objective.side lef'),
    Mistake('null for the model', '--model null'),
    Mistake('a flag of a strategy that is a text', '--trainer.strategy ddp --trainer.strategy.timeout 3'),
    Mistake('a flag of a logger that is not named', '--trainer.logger.save_dir logs'),
    Mistake('a word for a number of a source that a flag names', '--data.train FigletPuzzles --data.train.count many'),
    Mistake('a word for a number after an objective that is named late', '--model.objective.alpha 3 --model.objective Power --trainer.max_epochs many'),
    Mistake('a list that is too short', '--model.optimizer.betas [0.8]'),
    Mistake('a word for a number after print_config', '--print_config --trainer.max_epochs many'),
    Mistake('an abbreviated flag', '--model.obj NLL'),
    Mistake('an abbreviated flag of the trainer', '--trainer.max_st 5'),
    Mistake('an abbreviated flag of the run', '--na foo'),
    Mistake('no flags', 'fit'),
    Mistake('help on an unknown option', 'fit --help model.lor'),
    Mistake('help on an unknown option of the trainer', 'predict --help=trainer.max_step'),
    Mistake('help on an option without its group', 'preview --help lora'),
    Mistake('help on an unknown class', 'fit --help Powr'),
    Mistake('help on an unknown module', 'fit --help nowhere_of_mistakes.A'),
    Mistake("jsonargparse's form of help", '--model.lora.help'),
    Mistake('a whole number of a hundred bits', '--trainer.max_steps 1000000000000000000000000000000'),
    Mistake('an infinite number', '--trainer.gradient_clip_val .inf'),
    Mistake('a file in place of a list', '--trainer.callbacks train.jsonl'),
]
"""Flags and their values, refused by the parser."""

YAML = [
    Mistake('a tab', '', config=('  batch_size: 8', '\tbatch_size: 8')),
    Mistake('an unclosed quote', '', config=('class_path: NLL', 'class_path: "NLL')),
    Mistake('an unclosed brace', '', config=('{class_path: NLL}', '{class_path: NLL')),
    Mistake('a key twice', '', config=('  batch_size: 8', '  batch_size: 8\n  batch_size: 16')),
    Mistake('a block twice', '', config=('trainer: {', 'data: {batch_size: 3}\ntrainer: {')),
    Mistake('a colon in a text', '', config=('  batch_size: 8', '  chat_template: a: b')),
    Mistake('an unquoted template', '', config=('prompt: question, response: answer}}\n  val', 'prompt: Question: {question}, response: answer}}\n  val')),
    Mistake('too much indentation', '', config=('  batch_size: 8', '    batch_size: 8')),
    Mistake('too little indentation', '', config=('  batch_size: 8', 'batch_size: 8')),
    Mistake('a list for the whole file', '', config=(None, '- model\n- data\n')),
    Mistake('an empty file', '', config=(None, '')),
    Mistake('a text for the whole file', '', config=(None, 'hello\n')),
    Mistake('bytes that are no text', '', config=(None, b'\x80\x81')),
    Mistake('a letter in another encoding', '', config=(None, b'model: caf\xe9')),
    Mistake('null bytes', '', config=(None, b'\x00\x00')),
    Mistake('lr in the model block', '', config=('  generation:', '  lr: 0.1\n  generation:')),
    Mistake('objective at the top level', '', config=('trainer: {', 'objective: NegP\ntrainer: {')),
    Mistake('a misspelled block', '', config=('trainer: {', 'trainr: {max_epochs: 1}\ntrainer: {')),
    Mistake('a misspelled block that is empty', '', config=('trainer: {', 'trainr: {}\ntrainer: {')),
    Mistake('batch_size in the trainer block', '', config=('trainer: {', 'trainer: {batch_size: 3, ')),
    Mistake('max_epochs in the data block', '', config=('  batch_size: 8', '  batch_size: 8\n  max_epochs: 3')),
    Mistake('class instead of class_path', '', config=('objective: {class_path: NLL}', 'objective: {class: NLL}')),
    Mistake('arguments next to class_path', '', config=('objective: {class_path: NLL}', 'objective: {class_path: Power, alpha: 2}')),
    Mistake('a list for init_args', '', config=('objective: {class_path: NLL}', 'objective: {class_path: Power, init_args: [1]}')),
    Mistake('a number for a class_path', '', config=('objective: {class_path: NLL}', 'objective: {class_path: 3}')),
    Mistake('a list for a class', '', config=('objective: {class_path: NLL}', 'objective: [NLL]')),
    Mistake('a number for a class', '', config=('objective: {class_path: NLL}', 'objective: 3')),
    Mistake('an unknown class', '', config=('objective: {class_path: NLL}', 'objective: {class_path: Negp}')),
    Mistake('a class of the package in the wrong place', '', config=('objective: {class_path: NLL}', 'objective: {class_path: ByteTokenizer}')),
    Mistake('a class of a library in the wrong place', '', config=('objective: {class_path: NLL}', 'objective: {class_path: torch.nn.Linear}')),
    Mistake('a source for a tokenizer', '', config=('{class_path: ByteTokenizer}', '{class_path: Rows}')),
    Mistake('a tokenizer for a source', '', config=('train: {class_path: Rows', 'train: {class_path: BPETokenizer')),
    Mistake('an objective for a model', '', config=('class_path: RandomCausalLM', 'class_path: NLL')),
    Mistake('a misspelled argument', '', config=('path: train.jsonl, prompt', 'path: train.jsonl, promt')),
    Mistake('a misspelled argument of a model', '', config=('      config: {', '      confg: {')),
    Mistake('a missing required argument', '', config=('path: train.jsonl, prompt', 'prompt')),
    Mistake("a word for an objective's number", '', config=('objective: {class_path: NLL}', 'objective: {class_path: Power, init_args: {alpha: big}}')),
    Mistake('a missing part', '', config=('objective: {class_path: NLL}', 'objective: parts/nll.yaml')),
    Mistake('a number for the model', '', config=(None, 'model: 3\n')),
    Mistake('a list for the data', '', config=(None, 'data: [3]\n')),
    Mistake('a text for the trainer', '', config=(None, 'trainer: hello\n')),
    Mistake('a list for the trainer', '', config=(None, 'trainer: [3]\n')),
    Mistake('a number for a group of options', '--early_stopping 3'),
    Mistake('a word for a switch', '--resume=maybe'),
    Mistake('a flag of the command line in a file', '', config=(None, 'config: other.yaml\n')),
    Mistake('a file that contains itself', '', config=(None, 'model: &m {model: a, lora: *m}\n')),
    Mistake('a text for the data', '', config=(None, 'data: hello\n')),
    Mistake('a file without a model', '', config=(None, 'data: {train: train.jsonl}\n')),
    Mistake('an unknown module', '', config=(None, 'model: {class_path: nowhere_of_mistakes.A}\n')),
    Mistake('a class that is no ProbSFTModule', '', config=(None, 'model: {class_path: torch.nn.Linear}\n')),
    Mistake('a misspelled option of the schedule', '', config=('  generation:', '  schedule: {deca: linear}\n  generation:')),
    Mistake('a part that is a list', '', config=('objective: {class_path: NLL}', 'objective: part.yaml'), files={'part.yaml': '- 1\n'}),
    Mistake('a part that is a text', '', config=('objective: {class_path: NLL}', 'objective: part.yaml'), files={'part.yaml': 'hello\n'}),
    Mistake('a part that is empty', '', config=('objective: {class_path: NLL}', 'objective: part.yaml'), files={'part.yaml': ''}),
    Mistake('a part with broken YAML', '', config=('objective: {class_path: NLL}', 'objective: part.yaml'), files={'part.yaml': 'class_path: [\n'}),
    Mistake('a part in another encoding', '', config=('objective: {class_path: NLL}', 'objective: part.yaml'), files={'part.yaml': b'\xff\xfe\x00'}),
    Mistake('a part with broken YAML, named by a flag', '--model.objective part.yaml', files={'part.yaml': 'a: b: c\n'}),
    Mistake('aliases for a billion values', '', config=(None, ''.join(f'a{i}: &a{i} [{", ".join([f"*a{i - 1}"] * 10)}]\n' if i else 'a0: &a0 [1]\n' for i in range(10)))),
    Mistake('a time that is none', '', config=('batch_size: 8', 'batch_size: !!timestamp nope')),
]
"""Configuration files and their parts."""

OWN = [
    Mistake('a class that is no dataclass', '--model.objective mine_of_mistakes.Plain', files={'mine_of_mistakes.py': OWN_CLASSES}),
    Mistake('an abstract class', '--model.objective mine_of_mistakes.Abstract', files={'mine_of_mistakes.py': OWN_CLASSES}),
    Mistake('a missing required field', '--model.objective mine_of_mistakes.Asks', files={'mine_of_mistakes.py': OWN_CLASSES}),
    Mistake('a function instead of a class', '--model.objective mine_of_mistakes.function', files={'mine_of_mistakes.py': OWN_CLASSES}),
    Mistake('an unknown class', '--model.objective mine_of_mistakes.plain', files={'mine_of_mistakes.py': OWN_CLASSES}),
    Mistake('an unknown module', '--model.objective nowhere_of_mistakes.A'),
    Mistake('a module with a failing import, named by a flag', '--model.objective lost_of_mistakes.A', files={'lost_of_mistakes.py': 'import nothing_here\n'}),
    Mistake('a module with a failing import, named in the file', '', config=('objective: {class_path: NLL}', 'objective: {class_path: lost_of_mistakes.A}'), files={'lost_of_mistakes.py': 'import nothing_here\n'}),
    Mistake('a module with a syntax error, named by a flag', '--model.objective syntax_of_mistakes.A', files={'syntax_of_mistakes.py': 'class A(:\n'}),
    Mistake('a module with a syntax error, named in the file', '', config=('objective: {class_path: NLL}', 'objective: {class_path: syntax_of_mistakes.A}'), files={'syntax_of_mistakes.py': 'class A(:\n'}),
    Mistake('a module that raises, named by a flag', '--model.objective raises_of_mistakes.A', files={'raises_of_mistakes.py': '1 / 0\n'}),
    Mistake('a module that raises, named in the file', '', config=('objective: {class_path: NLL}', 'objective: {class_path: raises_of_mistakes.A}'), files={'raises_of_mistakes.py': '1 / 0\n'}),
    Mistake('a constructor that raises', '--model.objective mine_of_mistakes.Picky', files={'mine_of_mistakes.py': OWN_CLASSES}),
    Mistake('an unknown field in needs', '--model.objective mine_of_mistakes.Needs', files={'mine_of_mistakes.py': OWN_CLASSES}),
    Mistake('a loss that returns a mean', '--model.objective mine_of_mistakes.Mean', files={'mine_of_mistakes.py': OWN_CLASSES}),
    Mistake('a loss that returns nothing', '--model.objective mine_of_mistakes.Nothing', files={'mine_of_mistakes.py': OWN_CLASSES}),
]
"""Classes in a user's module."""

OTHERS = [
    Mistake('export without arguments', 'export'),
    Mistake('export without a target', 'export a.ckpt'),
    Mistake('export of a missing checkpoint', 'export a.ckpt out'),
    Mistake('export of a file that is no checkpoint', 'export train.jsonl out'),
    Mistake('export with too many arguments', 'export a b c'),
    Mistake('export with a prefix of a flag', 'export a.ckpt out --overwrit'),
    Mistake('report without arguments', 'report'),
    Mistake('report on a missing run', 'report runs/nope'),
    Mistake('report on a folder without a run', 'report .'),
    Mistake('report with an unknown flag', 'report runs/nope --htm x'),
    Mistake('configs without arguments', 'configs'),
    Mistake('configs with an unknown action', 'configs lst'),
    Mistake('configs show without a name', 'configs show'),
    Mistake('configs show with an unknown name', 'configs show quickstrt'),
    Mistake('configs copy into a file', 'configs copy quickstart train.jsonl'),
    Mistake('configs with an unknown flag', 'configs list --all'),
    Mistake('capability with a sample of one row', 'capability --sample 1'),
    Mistake('capability with a word for the sample', 'capability --sample many'),
    Mistake('capability with a sample without a number', 'capability --sample'),
    Mistake('divergence with an unknown split', 'divergence --split tran'),
    Mistake('divergence with an unknown dtype', 'divergence --dtype float16'),
    Mistake('divergence with --model-a without a model', 'divergence --model-a'),
    Mistake('divergence into a missing folder', 'divergence --out nope/x.json'),
    Mistake('divergence onto a folder', 'divergence --out .'),
    Mistake('preview with zero rows', 'preview --rows 0'),
    Mistake('preview with a word for the rows', 'preview --rows x'),
    Mistake('preview with an unknown split', 'preview --split val'),
    Mistake('preview into a missing folder', 'preview --html nope/x.html'),
    Mistake('preview with an unknown flag', 'preview --row 3'),
    Mistake('chat with a missing run', 'chat runs/nope'),
    Mistake('chat with a missing checkpoint', 'chat nope.ckpt'),
    Mistake('export of a model', 'export m out', files={'m/config.json': '{}'}),
    Mistake('an abbreviated flag of capability', 'capability --samp 3'),
    Mistake('configs copy over a different file', 'configs copy quickstart out', files={'out/quickstart.yaml': 'x'}),
    Mistake('export over a run folder', 'export runs/c/checkpoints/last.ckpt runs/c', before=mistake_files.completed_run),
    Mistake('export over the folder of the checkpoint', 'export runs/c/checkpoints/last.ckpt runs --overwrite', before=mistake_files.completed_run),
    Mistake('export into a file', 'export runs/c/checkpoints/last.ckpt train.jsonl', before=mistake_files.completed_run),
    Mistake('export of a damaged checkpoint', 'export runs/c/checkpoints/last.ckpt out', before=mistake_files.damaged_checkpoints),
    Mistake('export of a run folder', 'export runs/c out', before=mistake_files.completed_run),
    Mistake('report on a broken record', 'report runs/c', before=mistake_files.broken_record),
    Mistake('report into a missing folder', 'report runs/c --html nope/x.html', before=mistake_files.completed_run),
    Mistake('capability with a checkpoint', 'capability --ckpt_path x'),
    Mistake('capability of a stream', 'capability --data.streaming true'),
    Mistake('divergence from a missing run', 'divergence'),
    Mistake('divergence on a split without rows', 'divergence --split test --model-b base'),
    Mistake('preview of a split without rows', 'preview --split test'),
    Mistake('predict without rows', 'predict --data.validation null'),
    Mistake('validate without rows', 'validate --data.validation null'),
    Mistake('test without rows', 'test'),
    Mistake('validate with --resume', 'validate --resume'),
    Mistake('test with --overwrite', 'test --overwrite'),
    Mistake('missing weights', 'validate --weights nope'),
    Mistake('weights from a folder without a model', 'validate --weights .'),
    Mistake('validate with a missing checkpoint', 'validate --ckpt_path nope.ckpt'),
    Mistake('validate with a damaged checkpoint', 'validate --ckpt_path train.jsonl'),
    Mistake('chat with template options that are no mapping', 'chat m --template-options thinking'),
    Mistake('chat with a template option that is a date', "chat m --template-options '{date: 2024-07-26}'"),
    Mistake('chat with a template option that the template does not read', "chat runs/c --device cpu --template-options '{enable_thinking: false}'", before=mistake_files.completed_run),
    Mistake('validate with a model for a checkpoint', 'validate --ckpt_path m', files={'m/config.json': '{}'}),
    Mistake('validate with 0 batches', 'validate --trainer.limit_val_batches 0'),
    Mistake('predict with 0 batches', 'predict --trainer.limit_predict_batches 0'),
    Mistake('predict with a misspelled name of a run', 'predict --name cc', before=mistake_files.completed_run),
    Mistake('chat with a seed of a hundred bits', 'chat m --seed 1000000000000000000000000000000'),
    Mistake('chat on a device without data', 'chat m --device meta'),
    Mistake('chat with a temperature that is no number', 'chat m --temperature nan'),
    Mistake('evaluate a missing run', 'evaluate runs/nope --tasks Exact:train.jsonl --out r.json'),
    Mistake('evaluate without a file for the results', 'evaluate m --tasks Exact:train.jsonl'),
    Mistake('evaluate without tasks', 'evaluate m --out r.json'),
    Mistake('evaluate into a text file', 'evaluate m --tasks Exact:train.jsonl --out r.txt'),
    Mistake('evaluate onto a folder', 'evaluate m --tasks Exact:train.jsonl --out r.json', files={'r.json/a': ''}),
    Mistake('evaluate into a folder of a run', 'evaluate runs/c --tasks Exact:train.jsonl --out runs/c.json', before=mistake_files.completed_run),
    Mistake('evaluate over results without answers', 'evaluate m --tasks Exact:train.jsonl --out r.json', files={'r.json': '{}'}),
    Mistake('evaluate with no answers', 'evaluate m --tasks Exact:train.jsonl --out r.json --n 0'),
    Mistake('evaluate with several greedy answers', 'evaluate m --tasks Exact:train.jsonl --out r.json --n 4'),
    Mistake('evaluate with a temperature that is no number', 'evaluate m --tasks Exact:train.jsonl --out r.json --temperature nan'),
    Mistake('evaluate with an empty nucleus', 'evaluate m --tasks Exact:train.jsonl --out r.json --top-p 0'),
    Mistake('evaluate with answers without tokens', 'evaluate m --tasks Exact:train.jsonl --out r.json --max-new-tokens 0'),
    Mistake('evaluate with a seed of a hundred bits', 'evaluate m --tasks Exact:train.jsonl --out r.json --seed 1000000000000000000000000000000'),
    Mistake('evaluate no question', 'evaluate m --tasks Exact:train.jsonl --out r.json --limit 0'),
    Mistake('evaluate with template options that are no mapping', 'evaluate m --tasks Exact:train.jsonl --out r.json --template-options thinking'),
    Mistake('evaluate with an unknown way of generation', 'evaluate m --tasks Exact:train.jsonl --out r.json --generation modell'),
    Mistake('evaluate on no device', 'evaluate m --tasks Exact:train.jsonl --out r.json --devices 0', files={'m/config.json': '{}'}),
    Mistake('evaluate on a device that does not exist', 'evaluate m --tasks Exact:train.jsonl --out r.json --device nope', files={'m/config.json': '{}'}),
    Mistake('evaluate the likelihood in several processes', 'evaluate m --tasks Exact:train.jsonl --out r.json --devices 2 --likelihood'),
    Mistake('evaluate in more processes than cores', 'evaluate m --tasks Exact:train.jsonl --out r.json --device cpu --devices 99999999', files={'m/config.json': '{}'}),
    Mistake('evaluate with a billion answers', 'evaluate m --tasks Exact:train.jsonl --out r.json --temperature 1 --n 1000000000'),
    Mistake('evaluate into a file with a name that is too long', 'evaluate m --tasks Exact:train.jsonl --out ' + 'a' * 5000 + '.json'),
    Mistake('evaluate a model with a name that is too long', 'evaluate ' + 'm' * 5000 + ' --tasks Exact:train.jsonl --out r.json'),
    Mistake('evaluate with a key for no server', 'evaluate m --tasks Exact:train.jsonl --out r.json --api-key x'),
    Mistake('evaluate with a temperature that the paper sets', 'evaluate m --tasks OpenBookQA:train.jsonl --out r.json --paper --temperature 1'),
    Mistake('evaluate a task that the paper does not have', 'evaluate m --tasks Exact:train.jsonl --out r.json --paper'),
    Mistake('evaluate what a model without a known base has forgotten', 'evaluate m --tasks Exact:train.jsonl --out r.json --retention ifeval', files={'m/config.json': '{}'}),
    Mistake('evaluate what a model on a server has forgotten', 'evaluate m --tasks Exact:train.jsonl --out r.json --server http://localhost:1 --server-template --retention ifeval'),
    Mistake('evaluate with the template of tasks that are not run', 'evaluate m --tasks Exact:train.jsonl --out r.json --retention-chat'),
    Mistake('evaluate a server on several devices', 'evaluate m --tasks Exact:train.jsonl --out r.json --server http://localhost:1 --devices 2'),
    Mistake('evaluate a model without a chat template', 'evaluate runs/c/hf --tasks Exact:train.jsonl --out r.json --device cpu', before=mistake_files.no_chat_template),
    Mistake('evaluate with a missing file for a template', 'evaluate runs/c --tasks Exact:train.jsonl --out r.json --device cpu --chat-template nope.jinja', before=mistake_files.completed_run),
    Mistake('evaluate with a system message that the template drops', "evaluate runs/c --tasks Exact:train.jsonl --out r.json --device cpu --system a --chat-template '{{ eos_token }}'", before=mistake_files.completed_run),
    Mistake('evaluate another model into the same file', 'evaluate runs/c --tasks Exact:train.jsonl --out r.json --device cpu', files={'r/settings.json': '{"settings": {"weights": "0123456789abcdef"}}', 'r/.lock': ''}, before=mistake_files.completed_run),
    Mistake('evaluate with other settings into the same file', 'evaluate runs/c --tasks Exact:train.jsonl --out r.json --device cpu --temperature 1', files={'r/settings.json': '{"settings": {"temperature of train": 0.7}}', 'r/.lock': ''}, before=mistake_files.completed_run),
    Mistake('evaluate with a list of settings in the folder', 'evaluate runs/c --tasks Exact:train.jsonl --out r.json --device cpu', files={'r/settings.json': '{"settings": []}', 'r/.lock': ''}, before=mistake_files.completed_run),
    Mistake('evaluate with damaged settings in the folder', 'evaluate runs/c --tasks Exact:train.jsonl --out r.json --device cpu', files={'r/settings.json': '{', 'r/.lock': ''}, before=mistake_files.completed_run),
]
"""Other commands than fit."""

def results(task: str = 'sums', **settings: object) -> str:
    """A results file of `evaluate` with one task of two questions."""
    numbers = {'mean': 0.5, 'se': 0.5, 'low': 0.1, 'high': 0.9}
    content = {'settings': {}, 'questions': 2, 'answers': 2, 'accuracy': numbers, 'grades': {'0': [1], '1': [0]}}
    return json.dumps({'format': 1, 'model': {'name': 'm'}, 'settings': settings, 'tasks': {task: content}})


COMPARE = [
    Mistake('compare without arguments', 'compare'),
    Mistake('compare with an unknown flag', 'compare a.json --picure a.png', files={'a.json': results()}),
    Mistake('compare of a missing file', 'compare a.json b.json', files={'a.json': results()}),
    Mistake('compare of rows', 'compare train.jsonl'),
    Mistake('compare of another JSON file', 'compare a.json', files={'a.json': '{"status": "completed"}'}),
    Mistake('compare of a results file without grades', 'compare a.json', files={'a.json': results().replace('"grades"', '"grade"')}),
    Mistake('compare of a results file of a later format', 'compare a.json', files={'a.json': results().replace('"format": 1', '"format": 2')}),
    Mistake('compare of a folder without results', 'compare .'),
    Mistake('compare of different tasks', 'compare a.json b.json', files={'a.json': results(), 'b.json': results('products')}),
    Mistake('compare of different settings', 'compare a.json b.json', files={'a.json': results(n=1, system=None), 'b.json': results(n=16, system='Be brief.')}),
    Mistake('compare with a picture of an unknown kind', 'compare a.json --picture a.gif', files={'a.json': results()}),
    Mistake('compare into a missing folder', 'compare a.json --csv nope/a.csv', files={'a.json': results()}),
    Mistake('compare onto a folder', 'compare a.json --latex .', files={'a.json': results()}),
    Mistake('report with a missing evaluation', 'report . --evaluation a.json'),
    Mistake('report against results where the run has none', 'report . --against a.json', files={'a.json': results()}),
    Mistake('report against a file that is not a results file', 'report . --evaluation a.json --against c.yaml', files={'a.json': results()}),
]

TRAINER = [
    Mistake('a negative number of epochs', '--trainer.max_epochs -3'),
    Mistake('zero epochs', '--trainer.max_epochs 0'),
    Mistake('zero steps', '--trainer.max_steps 0'),
    Mistake('zero batches', '--trainer.limit_train_batches 0'),
    Mistake('a share above 1', '--trainer.limit_val_batches 2.5'),
    Mistake('a negative clipping value', '--trainer.gradient_clip_val -1'),
    Mistake('an unknown clipping algorithm', '--trainer.gradient_clip_algorithm foo'),
    Mistake('accumulation over zero batches', '--trainer.accumulate_grad_batches 0'),
    Mistake('validation every 0 batches', '--trainer.val_check_interval 0'),
    Mistake('validation every 0 epochs', '--trainer.check_val_every_n_epoch 0'),
    Mistake('a negative number of sanity steps', '--trainer.num_sanity_val_steps -3'),
    Mistake('zero nodes', '--trainer.num_nodes 0'),
    Mistake('zero devices', '--trainer.devices 0'),
    Mistake('a word for devices', '--trainer.devices two'),
    Mistake('a GPU on a machine without one', '--trainer.accelerator gpu'),
    Mistake('an unknown accelerator', '--trainer.accelerator gpuu'),
    Mistake('an unknown strategy', '--trainer.strategy dpp'),
    Mistake('an unknown ZeRO stage', '--trainer.strategy deepspeed_stage_9'),
    Mistake('FSDP1', '--trainer.strategy fsdp'),
    Mistake('ddp_spawn', '--trainer.strategy ddp_spawn'),
    Mistake('half precision', '--trainer.precision 16-mixed'),
    Mistake('an unknown profiler', '--trainer.profiler simpl'),
    Mistake('a word for max_time', '--trainer.max_time foo'),
    Mistake('no time', '--trainer.max_time 00:00:00:00'),
    Mistake('barebones', '--trainer.barebones true'),
    Mistake('a checkpoint callback', "--trainer.callbacks '[{class_path: ModelCheckpoint}]'"),
    Mistake('export of the best without checkpoints', '--trainer.enable_checkpointing false --checkpoints.export best'),
    Mistake('a share below one batch', '--trainer.limit_train_batches 0.01'),
    Mistake('a limit within a window', '--trainer.limit_train_batches 3 --trainer.accumulate_grad_batches 2'),
    Mistake('a validation interval longer than an epoch', '--trainer.val_check_interval 1000'),
    Mistake('checkpoints every 0 steps', '--checkpoints.save_every 0'),
    Mistake('a minimum of steps above the maximum', '--trainer.max_steps 2 --trainer.min_steps 5'),
    Mistake('a minimum of epochs above the maximum', '--trainer.max_epochs 1 --trainer.min_epochs 3'),
    Mistake('metrics every 0 steps', '--trainer.log_every_n_steps 0'),
    Mistake('a negative minimum of steps', '--trainer.min_steps -1'),
    Mistake('a time of no units', '--trainer.max_time "{}"'),
    Mistake('a time of too many days', '--trainer.max_time 99999999999999:00:00:00'),
    Mistake('nodes without an address', '--trainer.num_nodes 3'),
    Mistake('an optimizer for sparse gradients', '--model.optimizer torch.optim.SparseAdam'),
]
"""Flags of the trainer."""

RUNS = [
    Mistake('a name with a slash', '--name a/b'),
    Mistake('the parent folder as a name', '--name ..'),
    Mistake('an empty name', "--name ''"),
    Mistake('a blank name', "--name ' '"),
    Mistake('a long name', '--name xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx'),
    Mistake('runs_dir is a file', '--runs_dir train.jsonl'),
    Mistake('runs_dir below a file', '--runs_dir train.jsonl/x'),
    Mistake('a file with the name of the run', '', before=mistake_files.file_with_the_name_of_the_run),
    Mistake('a link in the run folder', '--overwrite', before=mistake_files.a_link_in_the_run),
    Mistake('resume without a run', '--resume'),
    Mistake('resume and overwrite', '--resume --overwrite'),
    Mistake('a run that exists', '', before=mistake_files.completed_run),
    Mistake('resume with an unknown name', '--resume --name othr', before=mistake_files.completed_run),
    Mistake('resume from a missing checkpoint', '--resume --ckpt_path x.ckpt', before=mistake_files.completed_run),
    Mistake('resume from damaged checkpoints', '--resume --trainer.max_epochs 2', before=mistake_files.damaged_checkpoints),
    Mistake('resume without checkpoints', '--resume', before=mistake_files.no_checkpoints),
    Mistake('resume with other batches', '--resume --data.batch_size 4 --trainer.max_epochs 2', before=mistake_files.completed_run),
    Mistake('resume with another seed', '--resume --data.seed 3 --trainer.max_epochs 2', before=mistake_files.completed_run),
    Mistake('resume with another objective', '--resume --model.objective NegP --trainer.max_epochs 2', before=mistake_files.completed_run),
    Mistake('resume with another optimizer', '--resume --model.optimizer torch.optim.SGD --trainer.max_epochs 2', before=mistake_files.completed_run),
    Mistake('resume with another model', '--resume --trainer.max_epochs 2', config=('hidden_size: 16', 'hidden_size: 32'), before=mistake_files.completed_run),
    Mistake('an empty checkpoint', "--ckpt_path ''"),
    Mistake('fit with weights', '--weights x'),
]
"""Run folders, and resumed runs."""

OPTIONS = [
    Mistake('model: zero rows to probe', '--model.probe_rows 0'),
    Mistake('model: zero memory for logits', '--model.logits_budget_mb 0'),
    Mistake('schedule: final', '--model.schedule.final 2'),
    Mistake('schedule: warmup', '--model.schedule.warmup -1'),
    Mistake('schedule: a fraction of a step', '--model.schedule.warmup 1.5'),
    Mistake('reference: nothing reads it', '--model.reference.model m'),
    Mistake('generation: tokens', '--model.generation.max_new_tokens 0'),
    Mistake('generation: top_p', '--model.generation.top_p 2'),
    Mistake('adapters: rank', '--model.lora LoRA --model.lora.r 0'),
    Mistake('adapters: dropout', '--model.lora LoRA --model.lora.dropout 1'),
    Mistake('adapters: target', "--model.lora LoRA --model.lora.target_modules '[foo]'"),
    Mistake('optimizer: learning rate', '--model.optimizer.lr -1'),
    Mistake('optimizer: betas', "--model.optimizer.betas '[0.9, 2]'"),
    Mistake('data: batch_size 0', '--data.batch_size 0'),
    Mistake('data: batch_size -1', '--data.batch_size -1'),
    Mistake('data: validation_fraction above 1', '--data.validation_fraction 1.5 --data.validation null'),
    Mistake('data: validation_fraction and a validation set', '--data.validation_fraction 0.1'),
    Mistake('data: validation_fraction of too few rows', '--data.validation null --data.validation_fraction 0.001'),
    Mistake('data: max_length 0', '--data.max_length 0'),
    Mistake('data: workers', '--data.num_workers -1'),
    Mistake('data: packing without a length', '--data.packing true'),
    Mistake('data: packing with a pool', '--data.packing true --data.max_length 200 --data.length_pool 3'),
    Mistake('data: a buffer without a stream', '--data.shuffle_buffer 4'),
    Mistake('data: a stream with validation_fraction', '--data.streaming true --trainer.max_steps 3 --data.validation null --data.validation_fraction .1'),
    Mistake('data: a stream with a tokenizer to train', '--data.streaming true --trainer.max_steps 3 --data.tokenizer BPETokenizer'),
    Mistake('data: a stream without max_steps', '--data.streaming true'),
    Mistake('data: a template for plain text', '--data.chat_template x --data.format plain'),
    Mistake('data: template options for plain text', "--data.template_options '{enable_thinking: false}' --data.format plain"),
    Mistake('data: template options without names', "--data.template_options '{1: 2}'"),
    Mistake('data: a template option with a reserved name', "--data.template_options '{messages: []}'"),
    Mistake('data: special_tokens_in_text', '--data.special_tokens_in_text txt'),
    Mistake('data: plain text has no history to split', '--data.rewritten_history split --data.format plain'),
    Mistake('data: no rows', '--data.train null'),
    Mistake('data: no tokenizer', '--data.tokenizer null'),
    Mistake('data: a small vocabulary', '--data.tokenizer BPETokenizer --data.tokenizer.vocab_size 3'),
    Mistake('data: cache_dir is a file', '--data.cache_dir train.jsonl'),
    Mistake('data: cache_dir that cannot be created', '--data.cache_dir /proc/x --data.tokenizer ./none'),
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
    Mistake('mixture: no sources', '--data.train \'{"class_path": "Mixture", "init_args": {"sources": {}}}\''),
    Mistake('mixture: a name with a space', '--data.train \'{"class_path": "Mixture", "init_args": {"sources": {"a b": {"class_path": "Rows", "init_args": {"path": "train.jsonl", "prompt": "question", "response": "answer"}}}}}\''),
    Mistake('mixture: weight 0', '--data.train \'{"class_path": "Mixture", "init_args": {"sources": {"a": {"source": {"class_path": "Rows", "init_args": {"path": "train.jsonl", "prompt": "question", "response": "answer"}}, "weight": 0}}}}\''),
    Mistake('mixture: a source without a weight', '--data.train \'{"class_path": "Mixture", "init_args": {"sources": {"a": {"source": {"class_path": "Rows", "init_args": {"path": "train.jsonl", "prompt": "question", "response": "answer"}}, "weight": 1}, "b": {"class_path": "Rows", "init_args": {"path": "train.jsonl", "prompt": "question", "response": "answer"}}}}}\''),
    Mistake('mixture: cap 0', '--data.train \'{"class_path": "Mixture", "init_args": {"sources": {"a": {"source": {"class_path": "Rows", "init_args": {"path": "train.jsonl", "prompt": "question", "response": "answer"}}, "cap": 0}}}}\''),
    Mistake('mixture: cap and weight', '--data.train \'{"class_path": "Mixture", "init_args": {"sources": {"a": {"source": {"class_path": "Rows", "init_args": {"path": "train.jsonl", "prompt": "question", "response": "answer"}}, "weight": 1, "cap": 3}}}}\''),
    Mistake('mixture: size', '--data.train \'{"class_path": "Mixture", "init_args": {"sources": {"a": {"class_path": "Rows", "init_args": {"path": "train.jsonl", "prompt": "question", "response": "answer"}}}, "size": 3}}\''),
    Mistake('mixture: in a mixture', '--data.train \'{"class_path": "Mixture", "init_args": {"sources": {"a": {"class_path": "Mixture", "init_args": {"sources": {"b": {"class_path": "Rows", "init_args": {"path": "train.jsonl", "prompt": "question", "response": "answer"}}}}}}}}\''),
    Mistake('mixture: limit of a source', '--data.train \'{"class_path": "Mixture", "init_args": {"sources": {"a": {"class_path": "Rows", "init_args": {"path": "train.jsonl", "limit": 0}}}}}\''),
    Mistake('mixture: weight in the second of two', '--data.train \'{"class_path": "Mixture", "init_args": {"sources": {"a": "train.jsonl"}}}\' --data.validation \'{"class_path": "Mixture", "init_args": {"sources": {"a": {"source": "validation.jsonl", "weight": 0}}}}\''),
    Mistake('mixture: a missing file', '--data.train \'{"class_path": "Mixture", "init_args": {"sources": {"a": "nope.jsonl"}}}\''),
    Mistake('mixture: a misspelled option', '--data.train \'{"class_path": "Mixture", "init_args": {"sources": {"a": {"source": {"class_path": "Rows", "init_args": {"path": "train.jsonl", "prompt": "question", "response": "answer"}}, "wieght": 1}}}}\''),
]
"""Options of the model, the objective and the data."""

DATA = [
    Mistake('a missing file', '--data.train.path trian.jsonl'),
    Mistake('a missing folder', '--data.train.path nope/train.jsonl'),
    Mistake('a dataset that is not on the hub', '--data.train.path someone/something'),
    Mistake('a URL', '--data.train.path https://example.com/a.jsonl'),
    Mistake('a pattern without matches', "--data.train.path '*.jsn'"),
    Mistake('an unknown suffix', '--data.train.path c.yaml'),
    Mistake('a folder', '--data.train.path .'),
    Mistake('an empty path', '--data.train.path='),
    Mistake('an unknown column', '--data.train.prompt questoin'),
    Mistake('an unknown column in a template', "--data.train.prompt '{questoin} x'"),
    Mistake('an unclosed brace', "--data.train.prompt '{question'"),
    Mistake('an unknown weight column', '--data.train.weight wght'),
    Mistake('a misspelled format', '--data.train.format shargpt'),
    Mistake('two formats', '--data.train.messages msgs'),
    Mistake('no column named', '--data.train train.jsonl'),
    Mistake('a function in an unknown module', '--data.train.row_function nowhere_of_mistakes.fn'),
    Mistake('a function without a module', '--data.train.row_function fn'),
    Mistake('a function with an unknown name', '--data.train.row_function json.lods'),
    Mistake('limit 0', '--data.train.limit 0'),
    Mistake('a split of a local file', '--data.train.split foo'),
    Mistake('documents that are too long', '--data.max_length 40'),
    Mistake('all documents dropped as too long', '--data.max_length 10 --data.overflow drop'),
    Mistake('a missing tokenizer folder', '--data.tokenizer ./notok'),
    Mistake('a misspelled tokenizer class', '--data.tokenizer BytTokenizer'),
    Mistake('a folder without a tokenizer', '--data.tokenizer .'),
    Mistake('a missing template file', '--data.chat_template nope.jinja'),
    Mistake('a template with a syntax error', "--data.chat_template '{% for m in messages %}x'"),
    Mistake('a template that raises', '--data.chat_template "{{ raise_exception(\'no\') }}"'),
    Mistake('a template that leaves out content', '--data.chat_template "{% for m in messages %}{{ m[\'role\'] }}{% endfor %}"'),
    Mistake('a template option that the template does not read', "--data.chat_template '{{ enable_thinking }}' --data.template_options '{enable_thinkin: false}'"),
    Mistake('a template that changes control tokens', '--data.chat_template "{% for m in messages %}{{ m[\'content\'] | upper }}{% endfor %}"', files={'train.jsonl': '{"question": "a<|im_end|>", "answer": "b"}\n'}),
    Mistake('a refused control token', '--data.special_tokens_in_text refuse', files={'train.jsonl': '{"question": "a<|im_end|>", "answer": "b"}\n'}),
    Mistake("a row's template options that are no mapping", '', files={'train.jsonl': '{"question": "a", "answer": "b", "chat_template_kwargs": "[1"}\n'}),
    Mistake("a row's template option with a reserved name", '', files={'train.jsonl': '{"question": "a", "answer": "b", "chat_template_kwargs": {"eos_token": ""}}\n'}),
    Mistake('an empty file', '', files={'train.jsonl': ''}),
    Mistake('a line that is not JSON', '', files={'train.jsonl': '{"question": "1", "answer": "2"}\n{"question": \n'}),
    Mistake('a line that is a list', '', files={'train.jsonl': '{"question": "1", "answer": "2"}\n[1]\n'}),
    Mistake('an empty answer', '', files={'train.jsonl': '{"question": "1", "answer": "2"}\n{"question": "a", "answer": ""}\n'}),
    Mistake('null for an answer', '', files={'train.jsonl': '{"question": "1", "answer": "2"}\n{"question": "a", "answer": null}\n'}),
    Mistake('a row without a column', '', files={'train.jsonl': '{"question": "1", "answer": "2"}\n{"question": "a"}\n'}),
    Mistake('a row that is nested too deeply', '', files={'train.jsonl': '{"question": "a", "answer": "b", "chat_template_kwargs": ' + '{"a": ' * 600 + '1' + '}' * 600 + '}\n'}),
    Mistake('only bad rows', '--data.on_bad_row skip', files={'train.jsonl': '{"question": "a"}\n{"question": "a"}\n{"question": "a"}\n'}),
    Mistake('a line in another encoding', '', files={'train.jsonl': b'{"question": "\xff", "answer": "b"}\n'}),
    Mistake('a file that is not JSON', '--data.train.path t.json ', files={'t.json': '{\n'}),
    Mistake('a CSV file without rows', '--data.train.path t.csv ', files={'t.csv': 'question,answer\n'}),
    Mistake('a CSV line that is too long', '--data.train.path t.csv ', files={'t.csv': 'question,answer\na,b,c\n'}),
    Mistake('a CSV line that is too short', '--data.train.path t.csv ', files={'t.csv': 'question,answer\na\n'}),
    Mistake('a repeated CSV column', '--data.train.path t.csv ', files={'t.csv': 'question,question,answer\na,b,c\n'}),
    Mistake('a CSV file with semicolons', '--data.train.path t.csv ', files={'t.csv': 'question;answer\na;b\n'}),
    Mistake('a CSV file in another encoding', '--data.train.path t.csv ', files={'t.csv': b'question,answer\ncaf\xe9,b\n'}),
    Mistake('a file that is not parquet', '--data.train.path t.parquet ', files={'t.parquet': b'PAR1xxxx'}),
    Mistake('a broken gzip file', '--data.train.path t.jsonl.gz ', files={'t.jsonl.gz': b'x'}),
    Mistake('a gzip file that ends early', '--data.train.path t.csv.gz', before=mistake_files.compressed_rows_that_end_early),
    Mistake('a Zstandard file that ends early', '--data.train.path t.jsonl.zst', before=mistake_files.compressed_rows_that_end_early),
    Mistake('a compressed parquet file', '--data.train.path t.parquet.gz', files={'t.parquet.gz': b'x'}),
    Mistake('a parquet file with a damaged page', '--data.train.path t.parquet', before=mistake_files.parquet_with_a_damaged_page),
    Mistake('a parquet file with two columns of one name', '--data.train.path t.parquet', before=mistake_files.parquet_with_a_repeated_column),
    Mistake('a quote left open in a CSV file', '--data.train.path t.csv ', files={'t.csv': 'question,answer\na,"b\nc,d\n'}),
    Mistake('a stray quote in a CSV file', '--data.train.path t.csv ', files={'t.csv': 'question,answer\na,"b" c\n'}),
    Mistake('a list instead of a row in data', '--data.train.path t.json ', files={'t.json': '{"data": [{"question": "1", "answer": "2"}, []]}'}),
    Mistake('a weight that is too large', '--data.train.weight w', files={'train.jsonl': '{"question": "1", "answer": "2", "w": 1}\n{"question": "1", "answer": "2", "w": 1e308}\n'}),
    Mistake('a weight that is a mapping', '--data.train.weight w', files={'train.jsonl': '{"question": "1", "answer": "2", "w": {"x": 1}}\n'}),
    Mistake('a picture for an answer', '--data.train.path t.parquet', before=mistake_files.parquet_with_pictures_for_answers),
    Mistake('masked reasoning that the template writes without tags', """--data.reasoning mask --data.chat_template "{% for m in messages %}({{ m['reasoning_content'] }}){{ m['content'] }}<|im_end|>{% endfor %}" """, config=('path: train.jsonl, prompt: question, response: answer', 'path: train.jsonl'), files={'train.jsonl': '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo", "reasoning_content": "Hm."}]}\n'}),
    Mistake('an unknown role', '', config=('path: train.jsonl, prompt: question, response: answer', 'path: train.jsonl'), files={'train.jsonl': '{"messages": [{"role": "user", "content": "hi"}, {"role": "asistant", "content": "x"}]}\n'}),
    Mistake('a conversation that starts with the assistant', '', config=('path: train.jsonl, prompt: question, response: answer', 'path: train.jsonl'), files={'train.jsonl': '{"messages": [{"role": "assistant", "content": "yo"}, {"role": "user", "content": "hi"}]}\n'}),
    Mistake('two user turns in a row', '', config=('path: train.jsonl, prompt: question, response: answer', 'path: train.jsonl'), files={'train.jsonl': '{"messages": [{"role": "user", "content": "hi"}, {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}\n'}),
    Mistake('a conversation without a last answer', '', config=('path: train.jsonl, prompt: question, response: answer', 'path: train.jsonl'), files={'train.jsonl': '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}, {"role": "user", "content": "hi"}]}\n'}),
    Mistake('an empty conversation', '', config=('path: train.jsonl, prompt: question, response: answer', 'path: train.jsonl'), files={'train.jsonl': '{"messages": []}\n'}),
    Mistake('a turn without content', '', config=('path: train.jsonl, prompt: question, response: answer', 'path: train.jsonl'), files={'train.jsonl': '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant"}]}\n'}),
    Mistake('a conversation without a supervised turn', '', config=('path: train.jsonl, prompt: question, response: answer', 'path: train.jsonl'), files={'train.jsonl': '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo", "train": false}]}\n'}),
    Mistake('a turn with calls under both names', '', config=('path: train.jsonl, prompt: question, response: answer', 'path: train.jsonl'), files={'train.jsonl': '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}], "function_call": {"name": "g"}}]}\n'}),
    Mistake('a user who calls a tool', '', config=('path: train.jsonl, prompt: question, response: answer', 'path: train.jsonl'), files={'train.jsonl': '{"messages": [{"role": "user", "content": "hi", "tool_calls": [{"name": "f"}]}, {"role": "assistant", "content": "yo"}]}\n'}),
    Mistake('a function call without a name', '', config=('path: train.jsonl, prompt: question, response: answer', 'path: train.jsonl'), files={'train.jsonl': '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo", "function_call": {"arguments": "{}"}}]}\n'}),
    Mistake('a system column that is no text', '', config=('path: train.jsonl, prompt: question, response: answer', 'path: train.jsonl'), files={'train.jsonl': '{"prompt": "hi", "response": "yo", "system": 3}\n'}),
    Mistake('a history that is no list', '', config=('path: train.jsonl, prompt: question, response: answer', 'path: train.jsonl'), files={'train.jsonl': '{"instruction": "hi", "output": "yo", "history": "earlier"}\n'}),
    Mistake('a history of texts', '', config=('path: train.jsonl, prompt: question, response: answer', 'path: train.jsonl'), files={'train.jsonl': '{"instruction": "hi", "output": "yo", "history": ["earlier", "yes"]}\n'}),
    Mistake('too few labels', '', config=('path: train.jsonl, prompt: question, response: answer', 'path: train.jsonl'), files={'train.jsonl': '{"input_ids": [1, 2], "labels": [1]}\n'}),
    Mistake('unknown columns', '', config=('path: train.jsonl, prompt: question, response: answer', 'path: train.jsonl'), files={'train.jsonl': '{"a": "a", "b": "b"}\n'}),
    Mistake('an id outside the vocabulary', '', config=('path: train.jsonl, prompt: question, response: answer', 'path: train.jsonl'), files={'train.jsonl': '{"input_ids": [1, 999999], "labels": [-100, 999999]}\n'}),
    Mistake('predict on rows without a prompt', 'predict --data.predict t.jsonl', files={'t.jsonl': '{"text": "a"}\n'}),
    Mistake('evalplus without task_id', 'predict --predictions_format evalplus --weights base'),
    Mistake('evalplus with a number for task_id', 'predict --predictions_format evalplus --data.predict t.jsonl', files={'t.jsonl': '{"task_id": "HumanEval/0", "prompt": "a"}\n{"task_id": 1, "prompt": "a"}\n'}),
    Mistake('an unknown predictions_format', 'predict --predictions_format alpaca'),
    Mistake('a function that raises', '--data.train.row_function rows_of_mistakes.raises', files={'rows_of_mistakes.py': OWN_ROWS}),
    Mistake('a function that returns a number', '--data.train.row_function rows_of_mistakes.number', files={'rows_of_mistakes.py': OWN_ROWS}),
    Mistake('a pipe for rows', '--data.train.path p.jsonl', before=mistake_files.a_pipe),
    Mistake('a batch of billions', '--data.batch_size 9000000000'),
]
"""Rows, tokenizers and templates."""

MODEL = [
    Mistake('a folder without weights', '--model.model m', before=mistake_files.no_weights),
    Mistake('weights that are not safetensors', '--model.model m', before=mistake_files.no_safetensors),
    Mistake('truncated weights', '--model.model m', before=mistake_files.truncated_weights),
    Mistake('weights without one tensor', '--model.model m', before=mistake_files.missing_tensor),
    Mistake('a folder without config.json', '--model.model m', before=mistake_files.no_config),
    Mistake('a config.json that is not JSON', '--model.model m', before=mistake_files.broken_config),
    Mistake('a model that is not causal', '--model.model m', before=mistake_files.encoder_decoder),
    Mistake('weights with other shapes', '--model.model m', before=mistake_files.other_shapes),
    Mistake('weights in a pickle', '--model.model m', before=mistake_files.pickled_weights),
    Mistake('a missing folder', '--model.model ./none'),
    Mistake('a missing GGUF file', '--model.model ./none.gguf'),
    Mistake('a damaged GGUF file', '--model.model m.gguf', before=mistake_files.damaged_gguf),
    Mistake('the tokenizer of a damaged GGUF file', '--model.model m.gguf --data.tokenizer m.gguf', before=mistake_files.damaged_gguf),
    Mistake('a quantized GGUF file', '--model.model m.gguf --model.model.quantization nf4', before=mistake_files.damaged_gguf),
    Mistake('a file instead of a model', '--model.model c.yaml'),
    Mistake('a model that is not on the hub', '--model.model someone/model'),
    Mistake('an attention implementation that is not installed', '--model.model.attn_implementation flash_attention_2'),
    Mistake('a misspelled model type', '', config=('model_type: llama', 'model_type: lama')),
    Mistake('a configuration without a model type', '', config=('model_type: llama, ', '')),
    Mistake('a misspelled field', '', config=('{model_type: llama, hidden', '{model_type: llama, hiden')),
    Mistake('a model type that is not causal', '', config=('model_type: llama, hidden_size: 16', 'model_type: t5, d_model: 16')),
    Mistake('a hidden size that the heads do not divide', '', config=('num_attention_heads: 2', 'num_attention_heads: 3')),
    Mistake('a negative number of layers', '', config=('num_hidden_layers: 2', 'num_hidden_layers: -1')),
    Mistake('a word for the number of layers', '', config=('num_hidden_layers: 2', 'num_hidden_layers: two')),
    Mistake('zero heads', '', config=('num_attention_heads: 2', 'num_attention_heads: 0')),
    Mistake('key-value heads that do not divide the heads', '', config=('num_key_value_heads: 2', 'num_key_value_heads: 3')),
    Mistake('an odd width of the heads', '', config=('hidden_size: 16', 'hidden_size: 18')),
    Mistake('an odd head_dim', '', config=('{model_type: llama', '{head_dim: 3, model_type: llama')),
    Mistake('a vocabulary that is too small', '', config=('{model_type: llama', '{vocab_size: 50, model_type: llama')),
    Mistake('too few positions', '', config=('max_position_embeddings: 256', 'max_position_embeddings: 20')),
    Mistake('a rank of billions', '--model.lora LoRA --model.lora.r 9000000000'),
]
"""Models."""

# fmt: off
QUESTIONS = {'q.jsonl': '{"question": "1 + 1 =", "answer": "2"}\n'}

EVALUATING = [
    Mistake('an option of the evaluation without tasks', '--evaluation.limit 3'),
    Mistake('several greedy answers', '--evaluation.tasks gsm8k --evaluation.n 4'),
    Mistake('a misspelled option of the evaluation', '--evaluation.task gsm8k'),
    Mistake('a word for the interval', '--evaluation.tasks gsm8k --evaluation.every soon'),
    Mistake('an interval of 0 steps', '--evaluation.tasks gsm8k --evaluation.every 0'),
    Mistake('a share of an epoch of a stream', '--evaluation.tasks gsm8k --evaluation.every epoch --data.streaming true --trainer.max_steps 3'),
    Mistake('a top_p above 1', '--evaluation.tasks gsm8k --evaluation.top_p 2'),
    Mistake('no position for a batch', '--evaluation.tasks gsm8k --evaluation.batch_tokens 0'),
    Mistake('a misspelled task', '--evaluation.tasks gsm8'),
    Mistake('a missing file of a task', '--evaluation.tasks Exact:none.jsonl'),
    Mistake('a missing folder of the tasks', '--evaluation.tasks gsm8k --evaluation.data_dir none'),
    Mistake('a number for a task', '--evaluation.tasks [3]'),
    Mistake('questions longer than the model', '--evaluation.tasks Exact:q.jsonl', files={'q.jsonl': '{"question": "' + 'a' * 300 + '", "answer": "2"}\n'}),
    Mistake('a template that refuses a system message', """--evaluation.tasks Exact:q.jsonl --evaluation.system Hm --data.chat_template "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}<|{{ m.role }}|>{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}" """, files=QUESTIONS),
    Mistake('a template that leaves out the system message', """--evaluation.tasks Exact:q.jsonl --evaluation.system Hm --data.chat_template "{% for m in messages %}{% if m.role == 'system' %}{% else %}<|{{ m.role }}|>{{ m.content }}<|im_end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}" """, files=QUESTIONS),
    Mistake('the best by another metric', '--checkpoints.best val/mean_p'),
    Mistake('the best by a task without evaluation', '--checkpoints.best eval/gsm8k/accuracy'),
    Mistake('the best by a task that is not evaluated', '--evaluation.tasks Exact:q.jsonl --checkpoints.best eval/gsm8k/accuracy', files=QUESTIONS),
    Mistake('the best by the share of cut off answers', '--evaluation.tasks Exact:q.jsonl --checkpoints.best eval/q/cut_off', files=QUESTIONS),
    Mistake('the best by a score that the task does not have', '--evaluation.tasks Exact:q.jsonl --evaluation.max_new_tokens 1 --checkpoints.best eval/q/bleu', files=QUESTIONS),
    Mistake('the best by evaluations at validations without validation', '--evaluation.tasks Exact:q.jsonl --checkpoints.best eval/q/accuracy --data.validation null', files=QUESTIONS),
    Mistake('early stopping by evaluations between validations', '--evaluation.tasks Exact:q.jsonl --checkpoints.best eval/q/accuracy --evaluation.every 2 --early_stopping.patience 1', files=QUESTIONS),
    Mistake('a dry run with a misspelled task', '--evaluation.tasks gsm8 --dry_run'),
]
"""Evaluation during training."""
