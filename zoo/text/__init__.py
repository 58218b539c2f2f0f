"""Byte-level BPE, on the host and without jax."""

from zoo.text.bpe import unreachable as unreachable
from zoo.text.formats import read as read
from zoo.text.formats import write_ranks as write_ranks
from zoo.text.formats import write_tokenizer_json as write_tokenizer_json
from zoo.text.patterns import PATTERNS as PATTERNS
from zoo.text.pruning import prune as prune
from zoo.text.segment import Dropout as Dropout
from zoo.text.segment import Fewest as Fewest
from zoo.text.segment import Greedy as Greedy
from zoo.text.segment import stochastok as stochastok
from zoo.text.superwords import superbpe as superbpe
from zoo.text.tokenizer import BPETokenizer as BPETokenizer
from zoo.text.tokenizer import Stream as Stream
from zoo.text.trainer import extend as extend
from zoo.text.trainer import train as train
from zoo.text.vocabulary import Vocabulary as Vocabulary
