"""Mistakes that users make, each with the message that it earns, word for word.

`{folder}` stands for the folder in which the command is typed, `{commands}` and `{configs}` for what
there is; a line that begins with a flag is one of `fit --config c.yaml`. What c.yaml and the rows are, `tests.cli.mistaken` says.
"""

# ruff: noqa: E501 (messages are not broken, so that they can be searched for)
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.cli import mistaken


class Mistake(NamedTuple):
    """What is typed, what is said; what is exchanged in c.yaml (None: all of it), more files, what was there before."""

    name: str
    typed: str
    said: str
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
    Mistake('an unknown command', 'ft', "COMMAND: expected one of {commands}, got 'ft'. Did you mean 'fit'?"),
    Mistake('a file in the place of the command', 'c.yaml', "COMMAND: expected one of {commands}, got 'c.yaml'."),
    Mistake('an unknown flag', '--data.batchsize 3', "data.batchsize: there is no such option of InstructionDataModule. Did you mean 'batch_size' or 'eval_batch_size'?"),
    Mistake('the beginning of a flag', '--data.batch 3', "data.batch: there is no such option of InstructionDataModule. Did you mean 'batch_size'?"),
    Mistake('a flag without its group', '--batch_size 3', "batch_size: there is no such option. Did you mean 'data.batch_size'?"),
    Mistake('a flag of an optimizer without its group', '--lr 1e-3', "lr: there is no such option. Did you mean 'model.optimizer.lr'?"),
    Mistake('a flag of the trainer without its group', '--max_epochs 3', "max_epochs: there is no such option. Did you mean 'trainer.max_epochs'?"),
    Mistake('a flag of a group that has no other like it', '--checkpoints.kep 1', 'checkpoints.kep: there is no such option. It takes save_every, keep_last, asynchronous, export.'),
    Mistake('a flag of an inner group', '--model.generation.temprature 1', "model.generation.temprature: there is no such option. Did you mean 'temperature'?"),
    Mistake('a flag of adapters', '--model.lora LoRA --model.lora.rank 3', 'model.lora.rank: there is no such option of LoRA. It takes r, alpha, dropout, target_modules, seed, dora, rslora, modules_to_save, start, export.'),
    Mistake('a flag of an objective', '--model.objective Power --model.objective.alhpa 3', "model.objective.alhpa: there is no such option of Power. Did you mean 'alpha'?"),
    Mistake('a flag that its objective does not have', '--model.objective.alpha 3', 'model.objective.alpha: there is no such option of NLL. It takes none.'),
    Mistake('an objective without its group', '--objective NegP', "objective: there is no such option. Did you mean 'model.objective'?"),
    Mistake('a word too many', '--resume maybe', 'maybe: expected a flag, which begins with `--`, got a word that belongs to none'),
    Mistake('no value at the end', '--data.batch_size', '--data.batch_size: expected a value, got none'),
    Mistake('no value in the midst', '--model.objective.alpha --trainer.max_epochs 2', '--model.objective.alpha: expected a value, got none'),
    Mistake('no configuration', 'fit --config', '--config: expected a value, got none'),
    Mistake('a configuration that is not there', 'fit --config cc.yaml', '--config: expected a file, there is none at {folder}/cc.yaml'),
    Mistake('a configuration that is a folder', 'fit --config .', '--config: expected a file, . is a folder'),
    Mistake('a word for a whole number', '--data.batch_size four', "data.batch_size: expected a whole number, got 'four'"),
    Mistake('a fraction for a whole number', '--data.batch_size 2.5', 'data.batch_size: expected a whole number, got 2.5'),
    Mistake('nothing for a whole number', '--data.batch_size=', "data.batch_size: expected a whole number, got ''"),
    Mistake('null for a whole number', '--data.batch_size null', 'data.batch_size: expected a whole number, got none'),
    Mistake("Python's None", '--data.max_length None', "data.max_length: expected a whole number or null, got the text 'None'"),
    Mistake('a word for a number', '--model.optimizer.lr abc', "model.optimizer.lr: expected a number, got 'abc'"),
    Mistake('no number', '--model.objective Power --model.objective.alpha nan', "model.objective.alpha: expected a number, got 'nan'"),
    Mistake('a word for true or false', '--data.packing maybe', "data.packing: expected true or false, got 'maybe'"),
    Mistake('a number for true or false', '--data.streaming 2', 'data.streaming: expected true or false, got 2'),
    Mistake('a word that is none of several', '--data.overflow trunc', "data.overflow: expected one of error, truncate, drop, got 'trunc'. Did you mean 'truncate'?"),
    Mistake('another', '--model.normalize token', "model.normalize: expected one of tokens, sequence, kept, micro_batch, got 'token'. Did you mean 'tokens'?"),
    Mistake('a format of the data module', '--data.format plan', "data.format: expected one of chat, plain, got 'plan'. Did you mean 'plain'?"),
    Mistake('a mapping is expected', '--data.watch foo.jsonl', "data.watch: expected a mapping or null, got 'foo.jsonl'"),
    Mistake('a list is expected', '--model.optimizer.betas 0.9', 'model.optimizer.betas: expected a list, got 0.9'),
    Mistake('a seed', '--seed_everything foo', "seed_everything: expected true or false or a whole number, got 'foo'"),
    Mistake('a decay', '--model.schedule.decay lin', "model.schedule.decay: expected one of cosine, linear, constant, wsd, got 'lin'. Did you mean 'linear'?"),
    Mistake('a text for a schedule', '--model.schedule linear', "model.schedule: expected a mapping, or a YAML file with one, got 'linear'"),
    Mistake('null for a schedule', '--model.schedule null', 'model.schedule: expected a mapping, or a YAML file with one, got none'),
    Mistake('an objective that is not there', '--model.objective NegPP', "model.objective: expected a class (its name or import path), got 'NegPP'. Did you mean 'NegP'?"),
    Mistake('an objective within another', '--model.objective Threshold --model.objective.base Pwer', "model.objective.base: expected a class (its name or import path), got 'Pwer'. Did you mean 'Power'?"),
    Mistake('null for an objective', '--model.objective null', 'model.objective: expected a class (its name or import path) or a mapping of its arguments, got none'),
    Mistake('an optimizer that is not there', '--model.optimizer AdamX', "model.optimizer: expected a class (its name or import path), got 'AdamX'. Did you mean 'Adamax' or 'Adam' or 'RAdam'?"),
    Mistake("torch's optimizer in lower case", '--model.optimizer torch.optim.Adamw', "model.optimizer: expected a class (its name or import path), got 'torch.optim.Adamw'. Did you mean 'torch.optim.AdamW'?"),
    Mistake('a flag of an optimizer', '--model.optimizer.lrr 1', "model.optimizer.lrr: there is no such option of AdamW. Did you mean 'lr'?"),
    Mistake('no optimizer', '--model.optimizer torch.nn.Linear', 'model.optimizer: expected a class derived from Optimizer, torch.nn.Linear is none'),
    Mistake('null for an optimizer', '--model.optimizer null', 'model.optimizer: expected a class (its name or import path) or a mapping of its arguments, got none'),
    Mistake('adapters that are not there', '--model.lora Lora', "model.lora: expected a class (its name or import path), got 'Lora'. Did you mean 'LoRA'?"),
    Mistake('true for adapters', '--model.lora true', "model.lora: expected a class (its name or import path), got 'true'."),
    Mistake('a logger that is not there', '--trainer.logger Tensorbord', "trainer.logger: expected a class (its name or import path), got 'Tensorbord'. Did you mean 'TensorBoardLogger'?"),
    Mistake('a callback that is not there', "--trainer.callbacks '[{class_path: Foo}]'", "trainer.callbacks: expected a class (its name or import path), got 'Foo'."),
    Mistake('a precision that is not there', '--trainer.precision bf17', "trainer.precision: expected 32-true, bf16-mixed or bf16-true, got 'bf17'"),
    Mistake('a dtype that is not there', '--model.model.dtype float17', "model.model.dtype: expected one of auto, float32, bfloat16, float64, got 'float17'. Did you mean 'bfloat16' or 'float64' or 'float32'?"),
    Mistake("a text for a model's configuration", '--model.model.config llama', "model.model.config: expected a mapping, got 'llama'"),
    Mistake('a time of export', '--checkpoints.export lst', "checkpoints.export: expected one of final, best, every, none or null, got 'lst'"),
    Mistake('a side', '--model.objective QuantileThreshold --model.objective.side lef', "model.objective.side: expected one of top, bottom, got 'lef'"),
    Mistake('null for the model', '--model null', 'model: expected a value, got none'),
    Mistake('a flag of a source that is a text', '--data.train train.jsonl --data.train.row_function f.x', "data.train.row_function: expected a class with arguments as data.train, got the text 'train.jsonl'"),
]
"""Flags and their values, refused by the parser."""

YAML = [
    Mistake('a tab', '', '--config: c.yaml line 14: not valid YAML: a tab; expected blanks', config=('  batch_size: 8', '\tbatch_size: 8')),
    Mistake('a quote that is not closed', '', '--config: c.yaml line 7: not valid YAML: a quote that is never closed', config=('class_path: NLL', 'class_path: "NLL')),
    Mistake('a brace that is not closed', '', '--config: c.yaml line 8: not valid YAML: a bracket that is never closed, or a colon, bracket or comma within a text that is not in quotes', config=('{class_path: NLL}', '{class_path: NLL')),
    Mistake('a key twice', '', '--config: c.yaml line 15: not valid YAML: `batch_size` again, which is given in line 14', config=('  batch_size: 8', '  batch_size: 8\n  batch_size: 16')),
    Mistake('a block twice', '', '--config: c.yaml line 15: not valid YAML: `data` again, which is given in line 10', config=('trainer: {', 'data: {batch_size: 3}\ntrainer: {')),
    Mistake('a colon in a text', '', '--config: c.yaml line 14: not valid YAML: a colon within a text; put the text in quotes', config=('  batch_size: 8', '  chat_template: a: b')),
    Mistake('a template that is not in quotes', '', '--config: c.yaml line 11: not valid YAML: a bracket that is never closed, or a colon, bracket or comma within a text that is not in quotes', config=('prompt: question, response: answer}}\n  val', 'prompt: Question: {question}, response: answer}}\n  val')),
    Mistake('too far to the right', '', '--config: c.yaml line 14: not valid YAML: expected the indentation of the lines above', config=('  batch_size: 8', '    batch_size: 8')),
    Mistake('too far to the left', '', "batch_size: there is no such option. Did you mean 'data.batch_size'?", config=('  batch_size: 8', 'batch_size: 8')),
    Mistake('a list', '', "--config: expected a mapping with model, data and trainer in c.yaml, got a list, ['model', 'data']", config=(None, '- model\n- data\n')),
    Mistake('nothing', '', '--config: expected a mapping with model, data and trainer in c.yaml, got an empty file', config=(None, '')),
    Mistake('a text', '', "--config: expected a mapping with model, data and trainer in c.yaml, got a text, 'hello'", config=(None, 'hello\n')),
    Mistake('bytes', '', '--config: expected a YAML file in UTF-8, c.yaml is not: byte 0x80 at place 0', config=(None, b'\x80\x81')),
    Mistake('half a letter', '', '--config: expected a YAML file in UTF-8, c.yaml is not: byte 0xe9 at place 10', config=(None, b'model: caf\xe9')),
    Mistake('zeros', '', '--config: c.yaml: not valid YAML: a character that is no text; is it a YAML file?', config=(None, b'\x00\x00')),
    Mistake('lr of the model', '', "model.lr: there is no such option of ProbSFTModule. Did you mean 'model.optimizer.lr'?", config=('  generation:', '  lr: 0.1\n  generation:')),
    Mistake('objective at the top', '', "objective: there is no such option. Did you mean 'model.objective'?", config=('trainer: {', 'objective: NegP\ntrainer: {')),
    Mistake('a misspelt block', '', "trainr.max_epochs: there is no such option. Did you mean 'trainer.max_epochs'?", config=('trainer: {', 'trainr: {max_epochs: 1}\ntrainer: {')),
    Mistake('a misspelt block that is empty', '', "trainr: there is no such option. Did you mean 'trainer'?", config=('trainer: {', 'trainr: {}\ntrainer: {')),
    Mistake('batch_size of the trainer', '', "trainer.batch_size: there is no such option. Did you mean 'data.batch_size'?", config=('trainer: {', 'trainer: {batch_size: 3, ')),
    Mistake('max_epochs of the data', '', "data.max_epochs: there is no such option of InstructionDataModule. Did you mean 'trainer.max_epochs'?", config=('  batch_size: 8', '  batch_size: 8\n  max_epochs: 3')),
    Mistake('class for class_path', '', "model.objective.class: there is no such option of NLL. Did you mean 'class_path'?", config=('objective: {class_path: NLL}', 'objective: {class: NLL}')),
    Mistake('arguments beside the class_path', '', 'model.objective: expected the arguments of Power below `init_args`, got alpha beside `class_path`', config=('objective: {class_path: NLL}', 'objective: {class_path: Power, alpha: 2}')),
    Mistake('a list of arguments', '', 'model.objective.init_args: expected a mapping of the arguments of Power, got a list, [1]', config=('objective: {class_path: NLL}', 'objective: {class_path: Power, init_args: [1]}')),
    Mistake('a number for a class_path', '', 'model.objective.class_path: expected a class (its name or import path), got 3', config=('objective: {class_path: NLL}', 'objective: {class_path: 3}')),
    Mistake('a list for a class', '', "model.objective: expected a class (its name or import path) or a mapping of its arguments, got ['NLL']", config=('objective: {class_path: NLL}', 'objective: [NLL]')),
    Mistake('a number for a class', '', 'model.objective: expected a class (its name or import path) or a mapping of its arguments, got 3', config=('objective: {class_path: NLL}', 'objective: 3')),
    Mistake('a class that is not there', '', "model.objective: expected a class (its name or import path), got 'Negp'. Did you mean 'NegP'?", config=('objective: {class_path: NLL}', 'objective: {class_path: Negp}')),
    Mistake('a class of ours that belongs elsewhere', '', 'model.objective: expected a class derived from Objective, ByteTokenizer is none', config=('objective: {class_path: NLL}', 'objective: {class_path: ByteTokenizer}')),
    Mistake('a class of others that belongs elsewhere', '', 'model.objective: expected a class derived from Objective, torch.nn.Linear is none', config=('objective: {class_path: NLL}', 'objective: {class_path: torch.nn.Linear}')),
    Mistake('a source for a tokenizer', '', 'data.tokenizer: expected a class derived from TokenizerSource, Rows is none', config=('{class_path: ByteTokenizer}', '{class_path: Rows}')),
    Mistake('a tokenizer for a source', '', 'data.train: expected a class derived from Source, BPETokenizer is none', config=('train: {class_path: Rows', 'train: {class_path: BPETokenizer')),
    Mistake('an objective for a model', '', 'model.model: expected a class derived from ModelSource, NLL is none', config=('class_path: RandomCausalLM', 'class_path: NLL')),
    Mistake('an argument that is not there', '', "data.train.promt: there is no such option of Rows. Did you mean 'prompt'?", config=('path: train.jsonl, prompt', 'path: train.jsonl, promt')),
    Mistake('an argument of a model', '', "model.model.confg: there is no such option of RandomCausalLM. Did you mean 'config'?", config=('      config: {', '      confg: {')),
    Mistake('a required argument', '', 'data.train.path: expected a value, got none', config=('path: train.jsonl, prompt', 'prompt')),
    Mistake("a word for an objective's number", '', "model.objective.alpha: expected a number, got 'big'", config=('objective: {class_path: NLL}', 'objective: {class_path: Power, init_args: {alpha: big}}')),
    Mistake('a part that is not there', '', 'model.objective: expected a file, there is none at parts/nll.yaml', config=('objective: {class_path: NLL}', 'objective: parts/nll.yaml')),
    Mistake('a number for the model', '', 'model: expected a mapping in c.yaml, got 3', config=(None, 'model: 3\n')),
    Mistake('a list for the data', '', 'data: expected a mapping in c.yaml, got a list, [3]', config=(None, 'data: [3]\n')),
    Mistake('a text for the trainer', '', "trainer: expected a mapping, or a YAML file with one, got 'hello'", config=(None, 'trainer: hello\n')),
    Mistake('a text for the data', '', "data: expected a class (its name or import path), got 'hello'.", config=(None, 'data: hello\n')),
    Mistake('no model', '', 'model.model: expected a value, got none', config=(None, 'data: {train: train.jsonl}\n')),
    Mistake('a module that is not there', '', "model: expected a class (its name or import path), got 'my.Module'.", config=(None, 'model: {class_path: my.Module}\n')),
    Mistake('no module of ours', '', 'model: expected a class derived from ProbSFTModule, torch.nn.Linear is none', config=(None, 'model: {class_path: torch.nn.Linear}\n')),
    Mistake("a schedule's option", '', "model.schedule.deca: there is no such option of schedule. Did you mean 'decay' or 'decay_share'?", config=('  generation:', '  schedule: {deca: linear}\n  generation:')),
    Mistake('a part that is a list', '', 'model.objective: expected a mapping in part.yaml, got a list, [1]', config=('objective: {class_path: NLL}', 'objective: part.yaml'), files={'part.yaml': '- 1\n'}),
    Mistake('a part that is a text', '', "model.objective: expected a mapping in part.yaml, got a text, 'hello'", config=('objective: {class_path: NLL}', 'objective: part.yaml'), files={'part.yaml': 'hello\n'}),
    Mistake('a part that is empty', '', 'model.objective: expected a mapping in part.yaml, got nothing', config=('objective: {class_path: NLL}', 'objective: part.yaml'), files={'part.yaml': ''}),
    Mistake('a part that is broken', '', 'model.objective: part.yaml line 2: not valid YAML: a bracket that is never closed, or nothing where something is expected', config=('objective: {class_path: NLL}', 'objective: part.yaml'), files={'part.yaml': 'class_path: [\n'}),
    Mistake('a part in another encoding', '', 'model.objective: expected a YAML file in UTF-8, part.yaml is not: byte 0xff at place 0', config=('objective: {class_path: NLL}', 'objective: part.yaml'), files={'part.yaml': b'\xff\xfe\x00'}),
    Mistake('a part of a flag that is broken', '--model.objective part.yaml', 'model.objective: part.yaml line 1: not valid YAML: a colon within a text; put the text in quotes', files={'part.yaml': 'a: b: c\n'}),
]
"""Configuration files and their parts."""

OWN = [
    Mistake('no dataclass', '--model.objective mine_of_mistakes.Plain', 'model.objective: expected a class decorated with @dataclass(frozen=True), mine_of_mistakes.Plain is not', files={'mine_of_mistakes.py': OWN_CLASSES}),
    Mistake('an abstract class', '--model.objective mine_of_mistakes.Abstract', 'model.objective: expected a class that has all methods, mine_of_mistakes.Abstract lacks loss', files={'mine_of_mistakes.py': OWN_CLASSES}),
    Mistake('a required field', '--model.objective mine_of_mistakes.Asks', 'model.objective.a: expected a value, got none', files={'mine_of_mistakes.py': OWN_CLASSES}),
    Mistake('a function', '--model.objective mine_of_mistakes.function', 'model.objective: expected a class derived from Objective, mine_of_mistakes.function is none', files={'mine_of_mistakes.py': OWN_CLASSES}),
    Mistake('a class that is not there', '--model.objective mine_of_mistakes.plain', "model.objective: expected a class (its name or import path), got 'mine_of_mistakes.plain'.", files={'mine_of_mistakes.py': OWN_CLASSES}),
    Mistake('a module that is not there', '--model.objective nowhere_of_mistakes.A', "model.objective: expected a class (its name or import path), got 'nowhere_of_mistakes.A'."),
    Mistake('a module that imports what is not there, by a flag', '--model.objective lost_of_mistakes.A', "model.objective: cannot import lost_of_mistakes, which lost_of_mistakes.A names: ModuleNotFoundError: No module named 'nothing_here'", files={'lost_of_mistakes.py': 'import nothing_here\n'}),
    Mistake('a module that imports what is not there, in the file', '', "model.objective: cannot import lost_of_mistakes, which lost_of_mistakes.A names: ModuleNotFoundError: No module named 'nothing_here'", config=('objective: {class_path: NLL}', 'objective: {class_path: lost_of_mistakes.A}'), files={'lost_of_mistakes.py': 'import nothing_here\n'}),
    Mistake('a module that is no Python, by a flag', '--model.objective syntax_of_mistakes.A', 'model.objective: cannot import syntax_of_mistakes, which syntax_of_mistakes.A names: SyntaxError: invalid syntax (syntax_of_mistakes.py, line 1)', files={'syntax_of_mistakes.py': 'class A(:\n'}),
    Mistake('a module that is no Python, in the file', '', 'model.objective: cannot import syntax_of_mistakes, which syntax_of_mistakes.A names: SyntaxError: invalid syntax (syntax_of_mistakes.py, line 1)', config=('objective: {class_path: NLL}', 'objective: {class_path: syntax_of_mistakes.A}'), files={'syntax_of_mistakes.py': 'class A(:\n'}),
    Mistake('a module that raises, by a flag', '--model.objective raises_of_mistakes.A', 'model.objective: cannot import raises_of_mistakes, which raises_of_mistakes.A names: ZeroDivisionError: division by zero', files={'raises_of_mistakes.py': '1 / 0\n'}),
    Mistake('a module that raises, in the file', '', 'model.objective: cannot import raises_of_mistakes, which raises_of_mistakes.A names: ZeroDivisionError: division by zero', config=('objective: {class_path: NLL}', 'objective: {class_path: raises_of_mistakes.A}'), files={'raises_of_mistakes.py': '1 / 0\n'}),
    Mistake('a constructor that refuses', '--model.objective mine_of_mistakes.Picky', 'model.objective: Picky refuses its arguments: a is bad', files={'mine_of_mistakes.py': OWN_CLASSES}),
    Mistake('needs that nobody has', '--model.objective mine_of_mistakes.Needs', 'model.objective.needs: expected names among batch_mean_p, batch_nll, capability, collision, entropy, log_complement, logits, progress, reference_log_probs, reference_logits, running_mean_p, top_entropy, got entropi', files={'mine_of_mistakes.py': OWN_CLASSES}),
    Mistake('the mean of the losses', '--model.objective mine_of_mistakes.Mean', "Mean.loss: expected a loss of each token, (100,), got (); summing and dividing is the head's business", files={'mine_of_mistakes.py': OWN_CLASSES}),
    Mistake('no loss', '--model.objective mine_of_mistakes.Nothing', "Nothing.loss: expected a loss of each token, (100,), got None; summing and dividing is the head's business", files={'mine_of_mistakes.py': OWN_CLASSES}),
]
"""Classes of the user's own."""

OTHERS = [
    Mistake('export of nothing', 'export', 'CKPT, OUT: expected a value for each, got none (usage: python -m lit_probsft export [-h] [--overwrite] [--push-to-hub ID] [--merged | --adapter] [--base MODEL] CKPT OUT)'),
    Mistake('export to nowhere', 'export a.ckpt', 'OUT: expected a value, got none (usage: python -m lit_probsft export [-h] [--overwrite] [--push-to-hub ID] [--merged | --adapter] [--base MODEL] CKPT OUT)'),
    Mistake('export of what is not there', 'export a.ckpt out', 'CKPT: expected a checkpoint, there is none at a.ckpt'),
    Mistake('export of no checkpoint', 'export train.jsonl out', 'CKPT: expected a whole checkpoint, train.jsonl is damaged: File is not a zip file'),
    Mistake('export of three', 'export a b c', 'c: expected no more arguments (usage: python -m lit_probsft export [-h] [--overwrite] [--push-to-hub ID] [--merged | --adapter] [--base MODEL] CKPT OUT)'),
    Mistake('export with a flag that is cut short', 'export a.ckpt out --overwrit', "--overwrit: there is no such option. Did you mean '--overwrite'? (usage: python -m lit_probsft export [-h] [--overwrite] [--push-to-hub ID] [--merged | --adapter] [--base MODEL] CKPT OUT)"),
    Mistake('report of nothing', 'report', 'RUN: expected a value, got none (usage: python -m lit_probsft report [-h] [--html HTML] RUN)'),
    Mistake('report of what is not there', 'report runs/nope', "RUN: expected the folder of a run, such as runs/quickstart, got 'runs/nope'"),
    Mistake('report of a folder without a run', 'report .', "RUN: expected a folder that fit has written to, got '.' without a run.json"),
    Mistake('report with a flag that is not there', 'report runs/nope --htm x', "--htm: there is no such option. Did you mean '--html'? (usage: python -m lit_probsft report [-h] [--html HTML] RUN)"),
    Mistake('configs of nothing', 'configs', 'list | show NAME | copy NAME [OUT]: expected a value, got none (usage: python -m lit_probsft configs [-h] list | show NAME | copy NAME [OUT] ...)'),
    Mistake('configs of an unknown kind', 'configs lst', "COMMAND: expected one of list, show, copy, got 'lst'. Did you mean 'list'?"),
    Mistake('configs of no name', 'configs show', 'NAME: expected a value, got none (usage: python -m lit_probsft configs show [-h] NAME)'),
    Mistake('configs of an unknown name', 'configs show quickstrt', "NAME: expected one of {configs}, got 'quickstrt'. Did you mean 'quickstart'?"),
    Mistake('configs to a file', 'configs copy quickstart train.jsonl', "OUT: expected a folder that can be written to, got 'train.jsonl': File exists"),
    Mistake('configs with a flag that is not there', 'configs list --all', '--all: there is no such option. (usage: python -m lit_probsft configs [-h] list | show NAME | copy NAME [OUT] ...)'),
    Mistake('capability of one row', 'capability --sample 1', '--sample: expected at least 2 rows, got 1'),
    Mistake('capability of a word', 'capability --sample many', "--sample: expected a whole number, got 'many'"),
    Mistake('capability of no number', 'capability --sample', '--sample: expected a value, got none'),
    Mistake('divergence of an unknown split', 'divergence --split tran', "--split: expected one of train, validation, test, got 'tran'. Did you mean 'train'?"),
    Mistake('divergence of an unknown dtype', 'divergence --dtype float16', "--dtype: expected one of bfloat16, float32, float64, got 'float16'. Did you mean 'bfloat16' or 'float64' or 'float32'?"),
    Mistake('divergence without its model', 'divergence --model-a', '--model-a: expected a value, got none'),
    Mistake('divergence into no folder', 'divergence --out nope/x.json', "--out: expected a file in a folder that exists, got 'nope/x.json'"),
    Mistake('divergence over a folder', 'divergence --out .', "--out: expected a file to write, got '.', which is a folder"),
    Mistake('preview of no rows', 'preview --rows 0', '--rows: expected at least 1, got 0'),
    Mistake('preview of a word', 'preview --rows x', "--rows: expected a whole number, got 'x'"),
    Mistake('preview of an unknown split', 'preview --split val', "--split: expected one of train, validation, test, predict, got 'val'. Did you mean 'validation'?"),
    Mistake('preview into no folder', 'preview --html nope/x.html', "--html: expected a file in a folder that exists, got 'nope/x.html'"),
    Mistake('preview with an unknown flag', 'preview --row 3', 'row: there is no such option.'),
    Mistake('configs over a file that differs', 'configs copy quickstart out', "OUT: out/quickstart.yaml is there and differs from the package's; --overwrite replaces it", files={'out/quickstart.yaml': 'x'}),
    Mistake('export over a run', 'export runs/c/checkpoints/last.ckpt runs/c', 'OUT: expected a folder that does not exist yet, runs/c does; --overwrite replaces it', before=mistaken.a_run),
    Mistake('export over what holds the checkpoint', 'export runs/c/checkpoints/last.ckpt runs --overwrite', "OUT: expected a folder that can be replaced, 'runs' holds the checkpoint", before=mistaken.a_run),
    Mistake('export into a file', 'export runs/c/checkpoints/last.ckpt train.jsonl', "OUT: expected a folder to write, got 'train.jsonl': train.jsonl is a file", before=mistaken.a_run),
    Mistake('export of a damaged checkpoint', 'export runs/c/checkpoints/last.ckpt out', 'CKPT: expected a whole checkpoint, runs/c/checkpoints/last.ckpt is damaged: File is not a zip file', before=mistaken.damaged),
    Mistake('export of a run', 'export runs/c out', 'CKPT: expected a whole checkpoint, runs/c is damaged: its manifest is missing', before=mistaken.a_run),
    Mistake('report on a broken record', 'report runs/c', 'runs/c/run.json: expected JSON, which cannot be read: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)', before=mistaken.broken_record),
    Mistake('report into no folder', 'report runs/c --html nope/x.html', "--html: expected a file in a folder that exists, got 'nope/x.html'", before=mistaken.a_run),
    Mistake('capability with a checkpoint', 'capability --ckpt_path x', '--ckpt_path: expected none with capability; --weights takes a folder with a model'),
    Mistake('capability of a stream', 'capability --data.streaming true', '--sample: expected a number of rows with data.streaming, since a stream has no end'),
    Mistake('divergence from a run that is not there', 'divergence', '--model-b: expected a trained model in runs/c/hf, there is none; train it with fit, or name a folder or a hub id'),
    Mistake('divergence on rows that are not there', 'divergence --split test --model-b base', 'data.test: expected a source of rows (a file, say), got none'),
    Mistake('preview of rows that are not there', 'preview --split test', 'data.test: expected a source of rows (a file, say), got none'),
    Mistake('predict without rows', 'predict --data.validation null', 'data.predict: expected a source of rows (a file, say), data.test or data.validation, got none'),
    Mistake('validate without rows', 'validate --data.validation null', 'data.validation: expected a source of rows (a file, say) or data.validation_fraction, got none'),
    Mistake('test without rows', 'test', 'data.test: expected a source of rows (a file, say), got none'),
    Mistake('validate that resumes', 'validate --resume', '--resume and --overwrite: expected only with fit, got them with validate'),
    Mistake('test that overwrites', 'test --overwrite', '--resume and --overwrite: expected only with fit, got them with test'),
    Mistake('weights that are not there', 'validate --weights nope', "--weights: expected `auto`, `base` or a folder with a model, got 'nope'"),
    Mistake('weights that are no model', 'validate --weights .', "--weights: expected `auto`, `base` or a folder with a model, got '.'"),
    Mistake('validate with a checkpoint that is not there', 'validate --ckpt_path nope.ckpt', '--ckpt_path: expected a checkpoint, there is none at nope.ckpt'),
    Mistake('validate with a damaged checkpoint', 'validate --ckpt_path train.jsonl', '--ckpt_path: expected a whole checkpoint, train.jsonl is damaged: File is not a zip file'),
]
"""Commands beside fit."""

TRAINER = [
    Mistake('a negative number of epochs', '--trainer.max_epochs -3', 'trainer.max_epochs: expected at least 1, or -1 for no limit, got -3'),
    Mistake('no epochs', '--trainer.max_epochs 0', 'trainer.max_epochs: expected more than 0, since nothing would be trained; got 0'),
    Mistake('no steps', '--trainer.max_steps 0', 'trainer.max_steps: expected more than 0, since nothing would be trained; got 0'),
    Mistake('no batches', '--trainer.limit_train_batches 0', 'trainer.limit_train_batches: expected more than 0, since nothing would be trained; got 0'),
    Mistake('too large a share', '--trainer.limit_val_batches 2.5', 'trainer.limit_val_batches: expected a share from 0 to 1 or a number of batches, got 2.5'),
    Mistake('a negative clip', '--trainer.gradient_clip_val -1', 'trainer.gradient_clip_val: expected 0 (no clipping) or more, got -1'),
    Mistake('an unknown clip', '--trainer.gradient_clip_algorithm foo', "trainer.gradient_clip_algorithm: expected norm or value, got 'foo'"),
    Mistake('no accumulation', '--trainer.accumulate_grad_batches 0', 'trainer.accumulate_grad_batches: expected at least 1, got 0'),
    Mistake('validation every 0 batches', '--trainer.val_check_interval 0', 'trainer.val_check_interval: expected a share of an epoch, above 0 and at most 1, or a number of micro-batches, got 0'),
    Mistake('validation every 0 epochs', '--trainer.check_val_every_n_epoch 0', 'trainer.check_val_every_n_epoch: expected at least 1, got 0'),
    Mistake('sanity', '--trainer.num_sanity_val_steps -3', 'trainer.num_sanity_val_steps: expected at least -1, got -3'),
    Mistake('no nodes', '--trainer.num_nodes 0', 'trainer.num_nodes: expected at least 1, got 0'),
    Mistake('no devices', '--trainer.devices 0', "trainer.devices: expected a number of devices, at least 1, -1 for all, a list of them, or auto, got '0'"),
    Mistake('a word for devices', '--trainer.devices two', "trainer.devices: expected a number of devices, at least 1, -1 for all, a list of them, or auto, got 'two'"),
    Mistake('no GPU', '--trainer.accelerator gpu', "trainer.accelerator: expected a GPU that torch can use, found none, got 'gpu'; `auto` takes what is there"),
    Mistake('an unknown accelerator', '--trainer.accelerator gpuu', "trainer.accelerator: expected one of auto, cpu, gpu, cuda, mps, got 'gpuu'. Did you mean 'gpu'?"),
    Mistake('an unknown strategy', '--trainer.strategy dpp', "trainer.strategy: expected one of auto, ddp, fsdp2, deepspeed_stage_1, deepspeed_stage_2, deepspeed_stage_3, got 'dpp'. Did you mean 'ddp'?"),
    Mistake('an unknown stage', '--trainer.strategy deepspeed_stage_9', "trainer.strategy: expected one of auto, ddp, fsdp2, deepspeed_stage_1, deepspeed_stage_2, deepspeed_stage_3, got 'deepspeed_stage_9'. Did you mean 'deepspeed_stage_3' or 'deepspeed_stage_2' or 'deepspeed_stage_1'?"),
    Mistake('FSDP1', '--trainer.strategy fsdp', 'trainer.strategy: fsdp (FSDP1) is not supported, use fsdp2, which does the same'),
    Mistake('spawned processes', '--trainer.strategy ddp_spawn', 'trainer.strategy: ddp_spawn is not supported, use ddp, which starts its own processes'),
    Mistake('half precision', '--trainer.precision 16-mixed', 'trainer.precision: expected 32-true, bf16-mixed or bf16-true, got 16-mixed'),
    Mistake('an unknown profiler', '--trainer.profiler simpl', "trainer.profiler: expected one of simple, advanced, pytorch, xla, got 'simpl'. Did you mean 'simple'?"),
    Mistake('a time', '--trainer.max_time foo', "trainer.max_time: expected days:hours:minutes:seconds (00:12:00:00), got 'foo'"),
    Mistake('barebones', '--trainer.barebones true', "trainer.barebones: expected false, since a run's record needs a logger, got true"),
    Mistake('a checkpoint callback', "--trainer.callbacks '[{class_path: ModelCheckpoint}]'", 'trainer.callbacks: expected no ModelCheckpoint: --checkpoints.save_every, keep_last and export say what is kept, the best by val/nll among it'),
    Mistake('best without checkpoints', '--trainer.enable_checkpointing false --checkpoints.export best', 'checkpoints.export: expected final or none with trainer.enable_checkpointing: false, got best'),
    Mistake('a share of a batch', '--trainer.limit_train_batches 0.01', 'trainer.limit_train_batches: expected a share that leaves a batch of 3, got 0.01'),
    Mistake('part of a window', '--trainer.limit_train_batches 3 --trainer.accumulate_grad_batches 2', 'trainer.limit_train_batches: expected a multiple of accumulate_grad_batches (2), since a step is divided by all the tokens of its window, got 3'),
    Mistake("validation after the epoch's end", '--trainer.val_check_interval 1000', 'trainer.val_check_interval: expected at most 3, the micro-batches of an epoch (or trainer.check_val_every_n_epoch null, to count on), got 1000'),
    Mistake('checkpoints every 0 steps', '--checkpoints.save_every 0', 'checkpoints.save_every: expected optimizer steps (1, 2, ...), a share of an epoch between 0 and 1, or epoch, got 0'),
]
"""What the trainer is told."""

RUNS = [
    Mistake('a name with a slash', '--name a/b', "--name: expected a folder's name, without separators; --runs_dir says where; got 'a/b'"),
    Mistake('a name above', '--name ..', "--name: expected a folder's name, without separators; --runs_dir says where; got '..'"),
    Mistake('a long name', '--name xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx', '--name: expected at most 255 bytes, got 300'),
    Mistake('runs_dir is a file', '--runs_dir train.jsonl', "--runs_dir: expected a folder, got 'train.jsonl': {folder}/train.jsonl is a file"),
    Mistake('runs_dir below a file', '--runs_dir train.jsonl/x', "--runs_dir: expected a folder, got 'train.jsonl/x': {folder}/train.jsonl is a file"),
    Mistake('the run is a file', '', '--name: expected a folder at runs/c, which is a file', before=mistaken.run_is_a_file),
    Mistake('nothing to resume', '--resume', '--resume: expected checkpoints in runs/c/checkpoints, there are none'),
    Mistake('resume and overwrite', '--resume --overwrite', '--resume and --overwrite: expected at most one of them, got both'),
    Mistake('the run exists', '', '--name: the run folder runs/c exists; continue that run with --resume, replace it with --overwrite, or choose another --name', before=mistaken.a_run),
    Mistake('resume under another name', '--resume --name othr', '--resume: expected checkpoints in runs/othr/checkpoints, there are none', before=mistaken.a_run),
    Mistake('resume a checkpoint that is not there', '--resume --ckpt_path x.ckpt', '--ckpt_path: expected a checkpoint, there is none at x.ckpt', before=mistaken.a_run),
    Mistake('resume from damaged checkpoints', '--resume --trainer.max_epochs 2', '--resume: expected a whole checkpoint in runs/c/checkpoints: runs/c/checkpoints/step-00000003.ckpt is damaged: File is not a zip file', before=mistaken.damaged),
    Mistake('resume without checkpoints', '--resume', '--resume: expected checkpoints in runs/c/checkpoints, there are none', before=mistaken.no_checkpoints),
    Mistake('resume with other batches', '--resume --data.batch_size 4 --trainer.max_epochs 2', "--resume: expected the plan's window_size as in the checkpoint, 8, got 4; a run with other settings is a new run, from the old one's hf/ folder", before=mistaken.a_run),
    Mistake('resume with another seed', '--resume --data.seed 3 --trainer.max_epochs 2', "--resume: expected the plan's seed as in the checkpoint, 0, got 3; a run with other settings is a new run, from the old one's hf/ folder", before=mistaken.a_run),
    Mistake('resume with another objective', '--resume --model.objective NegP --trainer.max_epochs 2', '--resume: expected model.objective as in the checkpoint, {"class_path": "lit_probsft.objectives.NLL", "init_args": {}}, got {"class_path": "lit_probsft.objectives.NegP", "init_args": {}}; a run with other settings is a new run, from the old one\'s hf/ folder', before=mistaken.a_run),
    Mistake('resume with another optimizer', '--resume --model.optimizer torch.optim.SGD --trainer.max_epochs 2', '--resume: expected the optimizer that wrote runs/c/checkpoints/step-00000003.ckpt, got SGD, whose arguments differ (amsgrad, betas, capturable, dampening, decoupled_weight_decay, eps, momentum, nesterov)', before=mistaken.a_run),
    Mistake('resume with another model', '--resume --trainer.max_epochs 2', '--resume: expected a checkpoint of this model, runs/c/checkpoints/step-00000003.ckpt is of another: size mismatch for model.lm_head.weight: copying a param with shape torch.Size([259, 16]) from checkpoint, the shape in current model is torch.Size([259, 32]).', config=('hidden_size: 16', 'hidden_size: 32'), before=mistaken.a_run),
]
"""Run folders, and runs that go on."""

OPTIONS = [
    Mistake('model: no rows to probe', '--model.probe_rows 0', 'model.probe_rows: expected at least 1, got 0'),
    Mistake('model: no memory', '--model.logits_budget_mb 0', 'model.logits_budget_mb: expected more than 0 MiB, got 0.0'),
    Mistake('schedule: final', '--model.schedule.final 2', 'model.schedule.final: expected a factor from 0 to 1, got 2.0'),
    Mistake('schedule: warmup', '--model.schedule.warmup -1', 'model.schedule.warmup: expected a share below 1 or a number of steps, got -1.0'),
    Mistake('generation: tokens', '--model.generation.max_new_tokens 0', 'model.generation.max_new_tokens: expected at least 1, got 0'),
    Mistake('generation: top_p', '--model.generation.top_p 2', 'model.generation.top_p: expected a number above 0 and at most 1, got 2.0'),
    Mistake('adapters: rank', '--model.lora LoRA --model.lora.r 0', 'model.lora.r: expected at least 1, got 0'),
    Mistake('adapters: dropout', '--model.lora LoRA --model.lora.dropout 1', 'model.lora.dropout: expected at least 0 and less than 1, got 1.0'),
    Mistake('adapters: target', "--model.lora LoRA --model.lora.target_modules '[foo]'", "model.lora.target_modules: expected all-linear or a list of names among down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj, got ['foo']"),
    Mistake('optimizer: learning rate', '--model.optimizer.lr -1', 'model.optimizer: AdamW refuses its arguments: Invalid learning rate: -1.0'),
    Mistake('optimizer: betas', "--model.optimizer.betas '[0.9, 2]'", 'model.optimizer: AdamW refuses its arguments: Invalid beta parameter at index 1: 2.0'),
    Mistake('data: batch_size 0', '--data.batch_size 0', 'data.batch_size: expected at least 1, got 0'),
    Mistake('data: batch_size -1', '--data.batch_size -1', 'data.batch_size: expected at least 1, got -1'),
    Mistake('data: share', '--data.validation_fraction 1.5 --data.validation null', 'data.validation_fraction: expected at least 0 and less than 1, got 1.5'),
    Mistake('data: share and set', '--data.validation_fraction 0.1', 'data.validation_fraction: expected it or data.validation, got both'),
    Mistake('data: share of too few', '--data.validation null --data.validation_fraction 0.001', 'data.validation_fraction: expected a share that leaves rows on both sides, got 0.001 of 24 rows'),
    Mistake('data: max_length 0', '--data.max_length 0', 'data.max_length: expected at least 2, got 0'),
    Mistake('data: workers', '--data.num_workers -1', 'data.num_workers: expected at least 0, got -1'),
    Mistake('data: packing without a length', '--data.packing true', 'data.packing: expected data.max_length, the tokens of a pack, got none'),
    Mistake('data: packing with a pool', '--data.packing true --data.max_length 200 --data.length_pool 3', 'data.length_pool: expected it left alone with data.packing, whose rows are all of one length, got 3'),
    Mistake('data: a buffer without a stream', '--data.shuffle_buffer 4', 'data.shuffle_buffer: expected it with data.streaming only, got 4'),
    Mistake('data: a stream with a share', '--data.streaming true --trainer.max_steps 3 --data.validation null --data.validation_fraction .1', 'data.validation_fraction: expected none with data.streaming, which does not know the number of rows (name a data.validation), got 0.1'),
    Mistake('data: a stream with a vocabulary to learn', '--data.streaming true --trainer.max_steps 3 --data.tokenizer BPETokenizer', 'data.tokenizer: expected one that is there already with data.streaming, got BPETokenizer, which learns from the training rows'),
    Mistake('data: a stream without an end', '--data.streaming true', 'trainer.max_steps: expected the number of optimizer steps with data.streaming, since a stream has no end, got -1'),
    Mistake('data: a template for plain text', '--data.chat_template x --data.format plain', 'data.chat_template: expected none with `data.format: plain`, which uses no template'),
    Mistake('data: no rows', '--data.train null', 'data.train: expected a source of rows (a file, say), got none'),
    Mistake('data: no tokenizer', '--data.tokenizer null', 'data.tokenizer: expected a tokenizer (ByteTokenizer, or the name of a model), got none'),
    Mistake('data: a small vocabulary', '--data.tokenizer BPETokenizer --data.tokenizer.vocab_size 3', 'data.tokenizer.vocab_size: expected at least 259 (256 bytes and 3 special tokens), got 3'),
    Mistake('data: cache_dir is a file', '--data.cache_dir train.jsonl', "data.cache_dir: expected a folder, got 'train.jsonl': train.jsonl is a file"),
    Mistake('objective: Focal', '--model.objective Focal --model.objective.gamma -1', 'model.objective.gamma: expected a finite number, 0 or more, got -1.0'),
    Mistake('objective: TrSFT', '--model.objective TrSFT --model.objective.alpha 0', 'model.objective.alpha: expected a probability above 0 (1e-30), at most 1, got 0.0'),
    Mistake('objective: InfoSFT', '--model.objective InfoSFT --model.objective.max_prob .3', 'model.objective.max_prob: expected a probability above 0.5 and below 1, got 0.3'),
    Mistake('objective: Threshold', '--model.objective Threshold --model.objective.min_prob 3', 'model.objective: expected 0 <= min_prob <= max_prob <= 1, got min_prob = 3.0, max_prob = 1.0'),
    Mistake('objective: Balanced', '--model.objective Balanced --model.objective.target 0', 'model.objective.target: expected a finite number above 0, got 0.0'),
    Mistake('objective: LabelSmoothing', '--model.objective LabelSmoothing --model.objective.epsilon 2', 'model.objective.epsilon: expected a number from 0 to 1, got 2.0'),
    Mistake('objective: QuantileThreshold', '--model.objective QuantileThreshold --model.objective.keep 2', 'model.objective.keep: expected .001 to .999 in steps of .001, got 2.0'),
    Mistake('objective: IDFT', '--model.objective IDFT --model.objective.beta 0', 'model.objective: expected beta > 0 and 0 <= min_gamma <= max_gamma, all finite, got IDFT(beta=0.0, min_gamma=0.1, max_gamma=2.0)'),
    Mistake('objective: CapabilityPower', '--model.objective CapabilityPower --model.objective.max_alpha 0', 'model.objective.max_alpha: expected a finite number above 0, got 0.0'),
    Mistake('objective: RunningPower', '--model.objective RunningPower --model.objective.exponent 0', 'model.objective.exponent: expected a number above 0 and below 1000, got 0.0'),
    Mistake('objective: GEM', '--model.objective GEM --model.objective.beta 0', 'model.objective.beta: expected a temperature above 0, at most 1, got 0.0'),
    Mistake('objective: LogOneMinusP', '--model.objective LogOneMinusP --model.objective.eps 0', 'model.objective.eps: expected a positive finite number, got 0.0'),
    Mistake('objective: SCE', '--model.objective SCE --model.objective.alpha 0', 'model.objective: expected alpha > 0, beta >= 0 and log_zero < 0, all finite, got SCE(alpha=0.0, beta=1.0, log_zero=-9.210340371976182)'),
    Mistake('objective: Cayley', '--model.objective Cayley --model.objective.floor 2', 'model.objective.floor: expected a number from 0 to 1, got 2.0'),
    Mistake('objective: TALR', '--model.objective TALR --model.objective.tau -1', 'model.objective.tau: expected a finite number, 0 or more, got -1.0'),
    Mistake('objective: Huber', '--model.objective Huber --model.objective.delta 0', 'model.objective.delta: expected a number above 0, at most 1, got 0.0'),
    Mistake('objective: Poly1', '--model.objective Poly1 --model.objective.epsilon -2', 'model.objective.epsilon: expected a finite number, -1 or more, got -2.0'),
    Mistake('objective: PSFT', '--model.objective PSFT --model.objective.clip 0', 'model.objective.clip: expected a finite number above 0, got 0.0'),
    Mistake('objective: EAFT', '--model.objective EAFT --model.objective.k 1', 'model.objective.k: expected at least 2 tokens, got 1'),
    Mistake('objective: Anchored', '--model.objective Anchored --model.objective.weight -1', 'model.objective.weight: expected a finite number, 0 or more, got -1.0'),
    Mistake('objective: CapabilityPower source', '--model.objective CapabilityPower --model.objective.source nope.json', "model.objective.source: expected a capability.json, as `python -m lit_probsft capability` writes it, got 'nope.json': No such file or directory"),
    Mistake('objective: within another', '', 'model.objective.base.gamma: expected a finite number, 0 or more, got -1.0', config=('objective: {class_path: NLL}', 'objective: {class_path: Threshold, init_args: {base: {class_path: Focal, init_args: {gamma: -1}}}}')),
    Mistake('mixture: of nothing', '--data.train \'{"class_path": "Mixture", "init_args": {"sources": {}}}\'', 'data.train.sources: expected at least one source by name, got none'),
    Mistake('mixture: name', '--data.train \'{"class_path": "Mixture", "init_args": {"sources": {"a b": {"class_path": "Rows", "init_args": {"path": "train.jsonl", "prompt": "question", "response": "answer"}}}}}\'', "data.train.sources: expected names of letters, digits, `_`, `-` and `.`, got 'a b'"),
    Mistake('mixture: weight', '--data.train \'{"class_path": "Mixture", "init_args": {"sources": {"a": {"source": {"class_path": "Rows", "init_args": {"path": "train.jsonl", "prompt": "question", "response": "answer"}}, "weight": 0}}}}\'', 'data.train.sources.a.weight: expected a number above 0, got 0.0'),
    Mistake('mixture: some weights', '--data.train \'{"class_path": "Mixture", "init_args": {"sources": {"a": {"source": {"class_path": "Rows", "init_args": {"path": "train.jsonl", "prompt": "question", "response": "answer"}}, "weight": 1}, "b": {"class_path": "Rows", "init_args": {"path": "train.jsonl", "prompt": "question", "response": "answer"}}}}}\'', "data.train.sources.b.weight: expected one, since 'a' has one, got none"),
    Mistake('mixture: cap', '--data.train \'{"class_path": "Mixture", "init_args": {"sources": {"a": {"source": {"class_path": "Rows", "init_args": {"path": "train.jsonl", "prompt": "question", "response": "answer"}}, "cap": 0}}}}\'', 'data.train.sources.a.cap: expected at least 1 document, got 0'),
    Mistake('mixture: cap and weight', '--data.train \'{"class_path": "Mixture", "init_args": {"sources": {"a": {"source": {"class_path": "Rows", "init_args": {"path": "train.jsonl", "prompt": "question", "response": "answer"}}, "weight": 1, "cap": 3}}}}\'', 'data.train.sources.a.cap: expected none along with weights, got 3'),
    Mistake('mixture: size', '--data.train \'{"class_path": "Mixture", "init_args": {"sources": {"a": {"class_path": "Rows", "init_args": {"path": "train.jsonl", "prompt": "question", "response": "answer"}}}, "size": 3}}\'', 'data.train.size: expected it with weights only, got 3 and none'),
    Mistake('mixture: in a mixture', '--data.train \'{"class_path": "Mixture", "init_args": {"sources": {"a": {"class_path": "Mixture", "init_args": {"sources": {"b": {"class_path": "Rows", "init_args": {"path": "train.jsonl", "prompt": "question", "response": "answer"}}}}}}}}\'', 'data.train.sources.a.source: expected a source that is no mixture itself, got one'),
    Mistake('mixture: file', '--data.train \'{"class_path": "Mixture", "init_args": {"sources": {"a": "nope.jsonl"}}}\'', "data.train.sources.a.path: no such file: 'nope.jsonl'. Did you mean 'train.jsonl'?"),
    Mistake('mixture: option', '--data.train \'{"class_path": "Mixture", "init_args": {"sources": {"a": {"source": {"class_path": "Rows", "init_args": {"path": "train.jsonl", "prompt": "question", "response": "answer"}}, "wieght": 1}}}}\'', 'data.train.path: expected a file, or a mapping of a class and arguments that it takes, got \'{"class_path": "Mixture", "init_args": {"sources": {"a": {"source": {"class_path\''),
]
"""Options of the model, the objective and the data."""

DATA = [
    Mistake('a file that is not there', '--data.train.path trian.jsonl', "data.train.path: no such file: 'trian.jsonl'. Did you mean 'train.jsonl'?"),
    Mistake('a folder that is not there', '--data.train.path nope/train.jsonl', "data.train.path: no such file: 'nope/train.jsonl' (there is no folder 'nope' either)"),
    Mistake('a data set that the hub cannot give', '--data.train.path someone/something', "data.train.path: expected a local file or a data set that the hub can give, got 'someone/something': Couldn't reach 'someone/something' on the Hub (OfflineModeIsEnabled)"),
    Mistake('an address', '--data.train.path https://example.com/a.jsonl', "data.train.path: expected a local file or the name of a data set on the hub, got the address 'https://example.com/a.jsonl'"),
    Mistake('a pattern that nothing fits', "--data.train.path '*.jsn'", "data.train.path: no file matches '*.jsn'"),
    Mistake('a suffix', '--data.train.path c.yaml', "data.train.path: expected a file that ends in .json, .jsonl, .parquet, .csv, got 'c.yaml'"),
    Mistake('a folder', '--data.train.path .', "data.train.path: '.' is a folder that datasets' save_to_disk did not write; name its files instead, for example '*.jsonl'"),
    Mistake('an empty path', '--data.train.path=', 'data.train.path: expected a file, a folder or the name of a data set, got an empty text'),
    Mistake('a column', '--data.train.prompt questoin', "data.train.prompt: no column 'questoin' among 'question', 'answer'. Did you mean 'question'?"),
    Mistake('a column in a template', "--data.train.prompt '{questoin} x'", "data.train.prompt: no column 'questoin' among 'question', 'answer'. Did you mean 'question'?"),
    Mistake('a brace that is not closed', "--data.train.prompt '{question'", "data.train.prompt: no column '{question' among 'question', 'answer'. Did you mean 'question'?"),
    Mistake('a weight', '--data.train.weight wght', "data.train.weight: no column 'wght' among 'question', 'answer'."),
    Mistake('a format', '--data.train.format shargpt', "data.train.format: expected one of messages, sharegpt, prompt, alpaca, tokens, text, got 'shargpt'. Did you mean 'sharegpt'?"),
    Mistake('two formats', '--data.train.messages msgs', 'data.train.messages: expected either `messages`, or `prompt` with `response`, or `text`, got prompt and messages'),
    Mistake('no column named', '--data.train train.jsonl', "data.train.prompt: expected a column `messages`, `conversations` or `text`, or columns `prompt` and `response`, `instruction` and `output`, or `input_ids` and `labels`, or the columns to use named by `prompt` and `response`, by `messages` or by `text`; the columns are 'question', 'answer'"),
    Mistake("a function's module", '--data.train.row_function nowhere_of_mistakes.fn', "data.train.row_function: cannot import 'nowhere_of_mistakes', which 'nowhere_of_mistakes.fn' names: ModuleNotFoundError: No module named 'nowhere_of_mistakes'"),
    Mistake('a function without a module', '--data.train.row_function fn', "data.train.row_function: expected an import path such as my_rows.pubmedqa, got 'fn'"),
    Mistake("a function's name", '--data.train.row_function json.lods', "data.train.row_function: no function 'lods' in 'json'. Did you mean 'loads' or 'load'?"),
    Mistake('a limit', '--data.train.limit 0', 'data.train.limit: expected at least 1 row, got 0'),
    Mistake('too long', '--data.max_length 40', 'data.max_length: expected at most 40 tokens, got 85 (row 0 of data.train, counted from 0); `data.overflow: truncate` or `drop` goes on without'),
    Mistake('all dropped', '--data.max_length 10 --data.overflow drop', 'data.max_length: 85 tokens, at most 10 are kept; all 24 rows of data.train are lost (24 dropped, 0 skipped), this is the first'),
    Mistake('a tokenizer that is not there', '--data.tokenizer ./notok', "data.tokenizer.name_or_path: no such folder: './notok'."),
    Mistake("a tokenizer's class", '--data.tokenizer BytTokenizer', "data.tokenizer.name_or_path: expected a folder or a hub id that holds a tokenizer, got 'BytTokenizer': We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in the cached files. Did you mean 'ByteTokenizer' or 'BPETokenizer'?"),
    Mistake('a folder without a tokenizer', '--data.tokenizer .', "data.tokenizer.name_or_path: expected a folder or a hub id that holds a tokenizer, got '.', which has none that can be read"),
    Mistake('a template file', '--data.chat_template nope.jinja', "data.chat_template: expected a template file or Jinja text, got 'nope.jinja', which is neither."),
    Mistake('a template that is no Jinja', "--data.chat_template '{% for m in messages %}x'", "data.chat_template: not valid Jinja, line 1: Unexpected end of template. Jinja was looking for the following tags: 'endfor' or 'else'. The innermost block that needs to be closed is 'for'."),
    Mistake('a template that raises', '--data.chat_template "{{ raise_exception(\'no\') }}"', 'data.chat_template: it refuses the roles user, assistant: no (row 0 of data.train, counted from 0)'),
    Mistake('a template that leaves things out', '--data.chat_template "{% for m in messages %}{{ m[\'role\'] }}{% endfor %}"', "data.chat_template: it leaves out or changes part of what the assistant says, '49 97 53 5 33 65 62 51 415'; the turn is between ⟦ and ⟧:\nuser⟦assistant⟧ (row 0 of data.train, counted from 0)"),
    Mistake('an empty file', '', 'data.train: expected at least one row, got an empty data set', files={'train.jsonl': ''}),
    Mistake('a line that is no JSON', '', "data.train.path: 'train.jsonl' line 2: not valid JSON: Expecting value", files={'train.jsonl': '{"question": "1", "answer": "2"}\n{"question": \n'}),
    Mistake('a line that is a list', '', "data.train.path: 'train.jsonl' line 2: expected an object, got a list", files={'train.jsonl': '{"question": "1", "answer": "2"}\n[1]\n'}),
    Mistake('an empty answer', '', "data.train.response: column 'answer': expected a text that is not empty, got '' (row 1 of data.train, counted from 0)", files={'train.jsonl': '{"question": "1", "answer": "2"}\n{"question": "a", "answer": ""}\n'}),
    Mistake('null for an answer', '', "data.train.response: column 'answer': expected a text that is not empty, got null (row 1 of data.train, counted from 0)", files={'train.jsonl': '{"question": "1", "answer": "2"}\n{"question": "a", "answer": null}\n'}),
    Mistake('a row without a column', '', "data.train.response: no column 'answer' among 'question' (row 1 of data.train, counted from 0)", files={'train.jsonl': '{"question": "1", "answer": "2"}\n{"question": "a"}\n'}),
    Mistake('rows that are all bad', '--data.on_bad_row skip', "data.train.response: no column 'answer' among 'question' (row 0 of data.train, counted from 0); all 3 rows of data.train are lost (0 dropped, 3 skipped), this is the first", files={'train.jsonl': '{"question": "a"}\n{"question": "a"}\n{"question": "a"}\n'}),
    Mistake('a line in another encoding', '', "data.train.path: 'train.jsonl' line 1: not UTF-8: 'utf-8' codec can't decode byte 0xff in position 14: invalid start byte", files={'train.jsonl': b'{"question": "\xff", "answer": "b"}\n'}),
    Mistake('a file that is no JSON', '--data.train.path t.json ', "data.train.path: 't.json' line 2: not valid JSON: Expecting property name enclosed in double quotes", files={'t.json': '{\n'}),
    Mistake('a CSV file without rows', '--data.train.path t.csv ', 'data.train: expected at least one row, got an empty data set', files={'t.csv': 'question,answer\n'}),
    Mistake('a CSV line that is too long', '--data.train.path t.csv ', "data.train.path: 't.csv' line 2: expected 2 values, got more", files={'t.csv': 'question,answer\na,b,c\n'}),
    Mistake('a CSV line that is too short', '--data.train.path t.csv ', "data.train.path: 't.csv' line 2: expected 2 values, got 1; is a quote never closed?", files={'t.csv': 'question,answer\na\n'}),
    Mistake('a CSV column twice', '--data.train.path t.csv ', "data.train.path: 't.csv' line 1: expected every column once, got 'question' again", files={'t.csv': 'question,question,answer\na,b,c\n'}),
    Mistake('another CSV', '--data.train.path t.csv ', "data.train.prompt: no column 'question' among 'question;answer'. Did you mean 'question;answer'?", files={'t.csv': 'question;answer\na;b\n'}),
    Mistake('a CSV file in another encoding', '--data.train.path t.csv ', "data.train.path: 't.csv' line 2: not UTF-8", files={'t.csv': b'question,answer\ncaf\xe9,b\n'}),
    Mistake('a parquet file that is none', '--data.train.path t.parquet ', "data.train.path: 't.parquet': not a readable parquet file: Could not open Parquet input source 't.parquet': Parquet magic bytes not found in footer. Either the file is corrupted or this is not a parquet file.", files={'t.parquet': b'PAR1xxxx'}),
    Mistake('a compressed file', '--data.train.path t.jsonl.gz ', "data.train.path: expected a file that ends in .json, .jsonl, .parquet, .csv, got 't.jsonl.gz'", files={'t.jsonl.gz': b'x'}),
    Mistake('an unknown role', '', "data.train.messages[1]: expected a role among system, user, assistant, tool, got 'asistant'. Did you mean 'assistant'? (row 0 of data.train, counted from 0)", config=('path: train.jsonl, prompt: question, response: answer', 'path: train.jsonl'), files={'train.jsonl': '{"messages": [{"role": "user", "content": "hi"}, {"role": "asistant", "content": "x"}]}\n'}),
    Mistake('a conversation that begins with its end', '', 'data.train.messages[0]: roles out of order: expected system or user as the first turn, got assistant (row 0 of data.train, counted from 0)', config=('path: train.jsonl, prompt: question, response: answer', 'path: train.jsonl'), files={'train.jsonl': '{"messages": [{"role": "assistant", "content": "yo"}, {"role": "user", "content": "hi"}]}\n'}),
    Mistake('two turns of the user', '', 'data.train.messages[1]: roles out of order: expected assistant after a turn of user, got user (row 0 of data.train, counted from 0)', config=('path: train.jsonl, prompt: question, response: answer', 'path: train.jsonl'), files={'train.jsonl': '{"messages": [{"role": "user", "content": "hi"}, {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}\n'}),
    Mistake('no answer', '', "data.train.messages: expected the last turn to be the assistant's, which is what is learnt; got user (row 0 of data.train, counted from 0)", config=('path: train.jsonl, prompt: question, response: answer', 'path: train.jsonl'), files={'train.jsonl': '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}, {"role": "user", "content": "hi"}]}\n'}),
    Mistake('no turns', '', 'data.train.messages: expected a non-empty list of {role, content}, got [] (row 0 of data.train, counted from 0)', config=('path: train.jsonl, prompt: question, response: answer', 'path: train.jsonl'), files={'train.jsonl': '{"messages": []}\n'}),
    Mistake('a turn without a text', '', "data.train.messages[1]: expected a mapping with role and content, got {'role': 'assistant'} (row 0 of data.train, counted from 0)", config=('path: train.jsonl, prompt: question, response: answer', 'path: train.jsonl'), files={'train.jsonl': '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant"}]}\n'}),
    Mistake('nothing to learn', '', 'data.train.messages: expected a turn of the assistant to learn, got `train: false` for all of them (row 0 of data.train, counted from 0)', config=('path: train.jsonl, prompt: question, response: answer', 'path: train.jsonl'), files={'train.jsonl': '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo", "train": false}]}\n'}),
    Mistake('labels that are too short', '', 'data.train.labels: expected as many as input_ids, 2, got 1 (row 0 of data.train, counted from 0)', config=('path: train.jsonl, prompt: question, response: answer', 'path: train.jsonl'), files={'train.jsonl': '{"input_ids": [1, 2], "labels": [1]}\n'}),
    Mistake('unknown columns', '', "data.train.prompt: expected a column `messages`, `conversations` or `text`, or columns `prompt` and `response`, `instruction` and `output`, or `input_ids` and `labels`, or the columns to use named by `prompt` and `response`, by `messages` or by `text`; the columns are 'a', 'b'", config=('path: train.jsonl, prompt: question, response: answer', 'path: train.jsonl'), files={'train.jsonl': '{"a": "a", "b": "b"}\n'}),
    Mistake('an id that is no token', '', "data.tokenizer: expected ids below the model's vocabulary of 259, got 999999: does the tokenizer belong to this model?", config=('path: train.jsonl, prompt: question, response: answer', 'path: train.jsonl'), files={'train.jsonl': '{"input_ids": [1, 999999], "labels": [-100, 999999]}\n'}),
    Mistake('rows with turns to answer', 'predict --data.predict t.jsonl', 'data.predict: expected rows with turns to answer, got text (row 0 of data.predict, counted from 0)', files={'t.jsonl': '{"text": "a"}\n'}),
    Mistake('a function that raises', '--data.train.row_function rows_of_mistakes.raises', "data.train.row_function: rows_of_mistakes.raises raised KeyError: 'x' (row 0 of data.train, counted from 0)", files={'rows_of_mistakes.py': OWN_ROWS}),
    Mistake('a function that returns a number', '--data.train.row_function rows_of_mistakes.number', 'data.train.row_function: expected rows_of_mistakes.number to return a mapping such as {prompt, response}, got int (row 0 of data.train, counted from 0)', files={'rows_of_mistakes.py': OWN_ROWS}),
]
"""Rows, tokenizers and templates."""

MODEL = [
    Mistake('a folder without weights', '--model.model m', "model.model.model_name_or_path: expected a hub id or a folder with a causal language model, got 'm': Error no file named model.safetensors, or pytorch_model.bin, found in directory m.", before=mistaken.no_weights),
    Mistake('weights that are no weights', '--model.model m', "model.model.model_name_or_path: expected whole weights, a file of 'm' is damaged: Error while deserializing header: header too large", before=mistaken.no_safetensors),
    Mistake('weights that are cut short', '--model.model m', "model.model.model_name_or_path: expected whole weights, a file of 'm' is damaged: Error while deserializing header: incomplete metadata, file not fully covered", before=mistaken.cut),
    Mistake('weights with a hole', '--model.model m', "model.model.model_name_or_path: expected all weights of the model, 'm' lacks model.layers.0.self_attn.q_proj.weight", before=mistaken.a_hole),
    Mistake('a folder without config.json', '--model.model m', "model.model.model_name_or_path: expected a hub id or a folder with a causal language model, got 'm': Unrecognized model in m. Should have a `model_type` key in its config.json.", before=mistaken.no_config),
    Mistake('a config.json that is no JSON', '--model.model m', "model.model.model_name_or_path: expected a hub id or a folder with a causal language model, got 'm': It looks like the config file at 'm/config.json' is not a valid JSON file.", before=mistaken.broken_config),
    Mistake('no causal model', '--model.model m', "model.model.model_name_or_path: expected a hub id or a folder with a causal language model, got 'm': its architecture is no causal language model's", before=mistaken.t5),
    Mistake('weights of other shapes', '--model.model m', "model.model.model_name_or_path: expected weights of the shapes that config.json says, those of 'm' differ (transformers says above which)", before=mistaken.wide),
    Mistake('a pickle', '--model.model m', "model.model.model_name_or_path: expected weights and nothing else, 'm' holds a pickle that wants to run code, or is damaged", before=mistaken.a_pickle),
    Mistake('a folder that is not there', '--model.model ./none', "model.model.model_name_or_path: expected a hub id or a folder, there is none at 'none'."),
    Mistake('a file', '--model.model c.yaml', "model.model.model_name_or_path: expected a hub id or a folder, got 'c.yaml'"),
    Mistake('a model that the hub cannot give', '--model.model someone/model', "model.model.model_name_or_path: expected a hub id or a folder with a causal language model, got 'someone/model': We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in the cached files."),
    Mistake('an attention that is not installed', '--model.model.attn_implementation flash_attention_2', "model.model.attn_implementation: expected what llama can be built from, got 'flash_attention_2': FlashAttention2 has been toggled on, but it cannot be used due to the following error: the package for FlashAttention2 doesn't seem to be installed."),
    Mistake('an unknown type', '', "model.model.config.model_type: expected a model type of transformers, got 'lama'. Did you mean 'llama' or 'mllama' or 'llama4'?", config=('model_type: llama', 'model_type: lama')),
    Mistake('no type', '', 'model.model.config.model_type: expected a model type of transformers, got none', config=('model_type: llama, ', '')),
    Mistake('an unknown field', '', "model.model.config.hiden_size: expected a field of LlamaConfig. Did you mean 'hidden_size' or 'hidden_act'?", config=('{model_type: llama, hidden', '{model_type: llama, hiden')),
    Mistake('another kind of model', '', "model.model.config.model_type: expected a causal language model's, got 't5'", config=('model_type: llama, hidden_size: 16', 'model_type: t5, d_model: 16')),
    Mistake('heads', '', "model.model.config: expected what llama can be built from, got {'model_type': 'llama', 'hidden_size': 16, 'intermediate_size': 32, 'num_hidden_layers': 2, 'num_attention_heads': 3, 'num_key_value_heads': 2, 'max_position_embeddings': 256}: The hidden size (16) is not a multiple of the number of attention heads (3).", config=('num_attention_heads: 2', 'num_attention_heads: 3')),
    Mistake('a vocabulary that is too small', '', "model.model.config.vocab_size: expected at least 259, the tokenizer's vocabulary, got 50", config=('{model_type: llama', '{vocab_size: 50, model_type: llama')),
    Mistake('too few positions', '', "data.max_length: expected documents within the model's 20 positions, the longest has 87 tokens", config=('max_position_embeddings: 256', 'max_position_embeddings: 20')),
]
"""Models."""
