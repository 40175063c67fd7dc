"""Scores of captions by the official code of COCO (pycocoevalcap): BLEU, METEOR, ROUGE_L, CIDEr, SPICE; and CIDEr-D.

What the official code calls CIDEr is the formula of CIDEr-D (counts clipped, lengths compared) with the document
frequencies of the references at hand; `CiderD` has those of a training set instead and is the reward of self-critical
training. METEOR, SPICE and the official tokenizer are Java programs. Nothing is downloaded: what is not there is left
out of the scores, and the result says so.
"""

from __future__ import annotations

import contextlib
import math
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from x2vlm.errors import InvalidSample, X2VLMError

Tokenized = dict[str, list[str]]  # by image id its texts, tokens joined by blanks
Ngrams = Counter[tuple[str, ...]]
Weights = tuple[list[dict[tuple[str, ...], float]], list[float], int]  # by size: tf-idf, its norm; and the length

MAX_NGRAM = 4
LENGTH_DEVIATION = 6.0  # of the Gaussian with which CIDEr-D compares lengths
_WORD = re.compile(r"\w+(?:[-']\w+)*")
_PTB = ("tokenizer", "stanford-corenlp-3.4.1.jar")
_SPICE_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


@dataclass(frozen=True)
class CaptionScores:
    """`metrics` in percent (CIDEr 1.331 is 133.1); `cider_of_image` likewise, in the order of the captions.

    `measured_as`: which tokenizer, and for a metric that is left out why.
    """

    metrics: dict[str, float]
    cider_of_image: list[float]
    measured_as: dict[str, str]


def score_captions(
    references: Sequence[tuple[str, Sequence[str]]], captions: Sequence[tuple[str, str]]
) -> CaptionScores:
    """Scores of one caption for each image against its references; both are (image id, text or texts).

    InvalidSample for no captions, an id that occurs twice, an image without a caption or without references, and a
    caption of an unknown image.
    """
    wanted, found = _by_id(references, "references"), _by_id(captions, "captions")
    if not found:
        raise InvalidSample("empty_split", "there are no captions to score")
    if missing := [key for key in wanted if key not in found]:
        raise InvalidSample("missing_predictions", f"{len(missing)} images have no caption, such as {missing[0]}")
    for key in found:
        if not wanted.get(key):
            raise InvalidSample("no_references", f"image {key} has a caption and no reference")
    tokenizer: Literal["ptb", "plain"] = "ptb" if has_java() else "plain"
    refs = _tokenized({key: list(wanted[key]) for key in found}, tokenizer)
    caps = _tokenized({key: [text] for key, text in found.items()}, tokenizer)
    metrics, of_image = _python_scores(refs, caps)
    measured_as = {"tokenizer": tokenizer, "cider": "the formula of CIDEr-D, with document frequencies of this split"}
    for name, score, reason in (("meteor", _meteor, _no_java()), ("spice", _spice, _no_spice())):
        if reason is None:
            metrics[name] = 100 * score(refs, caps)
        else:
            measured_as[name] = f"left out: {reason}"
    if nan := [name for name, value in metrics.items() if math.isnan(value)]:
        raise InvalidSample("nan_score", f"{', '.join(nan)} of {len(caps)} captions is no number")
    return CaptionScores(metrics, of_image, measured_as)


def has_java() -> bool:
    """Whether a Java that can run METEOR, SPICE and the official tokenizer is installed."""
    return shutil.which("java") is not None


def plain_tokens(text: str) -> list[str]:
    """Lower-case words without punctuation: what the official tokenizer gives for most captions, without Java."""
    return _WORD.findall(text.lower())


def _by_id(pairs: Sequence[tuple[str, Any]], what: str) -> dict[str, Any]:
    by_id = dict(pairs)
    if len(by_id) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise InvalidSample("duplicate_id", f"{what}: image {twice} occurs twice")
    return by_id


def _python_scores(refs: Tokenized, caps: Tokenized) -> tuple[dict[str, float], list[float]]:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    bleu, _ = Bleu(MAX_NGRAM).compute_score(refs, caps, verbose=0)
    rouge, _ = Rouge().compute_score(refs, caps)
    cider, of_image = Cider().compute_score(refs, caps)
    metrics = {f"bleu_{size + 1}": 100 * float(value) for size, value in enumerate(bleu)}
    metrics |= {"rouge_l": 100 * float(rouge), "cider": 100 * float(cider)}
    return metrics, [100 * float(value) for value in of_image]


def _tokenized(texts: Mapping[str, Sequence[str]], tokenizer: Literal["ptb", "plain"]) -> Tokenized:
    # A text is one line for the tokenizer, and three bars separate the texts that METEOR reads.
    lines = [" ".join(text.replace("|||", " ").split()) for several in texts.values() for text in several]
    rows = iter(_ptb_lines(lines) if tokenizer == "ptb" else [" ".join(plain_tokens(line)) for line in lines])
    return {key: [next(rows) for _ in several] for key, several in texts.items()}


def _ptb_lines(lines: Sequence[str]) -> list[str]:
    """As the package's PTBTokenizer, which writes into the package's folder and passes over errors of Java."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS

    command = ["java", "-cp", str(_package().joinpath(*_PTB)), "edu.stanford.nlp.process.PTBTokenizer"]
    options = ["-preserveLines", "-lowerCase", "-encoding", "UTF-8"]
    done = subprocess.run([*command, *options], input="\n".join(lines).encode(), capture_output=True, check=False)
    found = done.stdout.decode().removesuffix("\n").split("\n")
    if done.returncode or len(found) != len(lines):
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise X2VLMError(
            f"the tokenizer of captions gave {len(found)} lines for {len(lines)} and ended with {done.returncode}: "
            f"{''.join(said)}; check that `java -version` works, and that a text holds no control characters"
        )
    return [" ".join(word for word in line.split(" ") if word and word not in PUNCTUATIONS) for line in found]


def _no_java() -> str | None:
    return None if has_java() else "no Java on this machine"


def _no_spice() -> str | None:
    folder = _package() / "spice" / "lib"
    missing = [name for name in _SPICE_MODELS if not (folder / name).is_file()]
    return _no_java() or (
        f"{' and '.join(missing)} missing in {folder.name} of pycocoevalcap.spice" if missing else None
    )


def _meteor(refs: Tokenized, caps: Tokenized) -> float:
    with _meteor_process() as meteor:
        score, _ = meteor.compute_score(refs, caps)
    return float(score)


@contextlib.contextmanager
def _meteor_process() -> Iterator[Any]:
    """METEOR's Java process, ended afterwards: the package does so only when its object is collected."""
    from pycocoevalcap.meteor.meteor import Meteor

    meteor = Meteor()
    try:
        yield meteor
    except (BrokenPipeError, ValueError) as error:  # it died, or answered with something else than a number
        raise X2VLMError(f"METEOR's Java process failed: {error}; it needs 2 GB of memory") from error
    finally:
        meteor.meteor_p.kill()
        for pipe in (meteor.meteor_p.stdin, meteor.meteor_p.stdout, meteor.meteor_p.stderr):
            with contextlib.suppress(OSError):
                pipe.close()
        meteor.meteor_p.wait()


def _spice(refs: Tokenized, caps: Tokenized) -> float:
    from pycocoevalcap.spice.spice import Spice

    score, _ = Spice().compute_score(refs, caps)
    return float(score)


def _package() -> Path:
    import pycocoevalcap

    return Path(next(iter(pycocoevalcap.__path__)))


class CiderD:
    """CIDEr-D of single texts, with the document frequencies of a set of references, such as the training captions.

    `references`: for each image its texts, as lists of tokens. An n-gram that is in none of them counts as if it were
    in one. With the references of the captions themselves it equals the official score.
    """

    def __init__(self, references: Sequence[Sequence[Sequence[str]]]) -> None:
        if not references:
            raise InvalidSample("empty_split", "CIDEr-D needs references to count words in")
        self._log_count = math.log(len(references))
        self._images_with: Ngrams = Counter()
        for texts in references:
            self._images_with.update({gram for tokens in texts for gram in _ngrams(tokens)})

    def score(self, tokens: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        """10 for a text equal to its references, 0 for one that shares no word; mean over the references."""
        own = self._weights(tokens)
        return 10 * float(np.mean([_similarity(own, self._weights(reference)) for reference in references]))

    def _weights(self, tokens: Sequence[str]) -> Weights:
        by_size: list[dict[tuple[str, ...], float]] = [{} for _ in range(MAX_NGRAM)]
        for gram, count in _ngrams(tokens).items():
            rarity = self._log_count - math.log(max(1, self._images_with[gram]))
            by_size[len(gram) - 1][gram] = count * rarity
        norms = [math.sqrt(sum(value * value for value in weights.values())) for weights in by_size]
        return by_size, norms, max(0, len(tokens) - 1)  # the official length counts pairs of words


def _ngrams(tokens: Sequence[str]) -> Ngrams:
    return Counter(
        tuple(tokens[start : start + size])
        for size in range(1, MAX_NGRAM + 1)
        for start in range(len(tokens) - size + 1)
    )


def _similarity(text: Weights, reference: Weights) -> float:
    values = []
    for own, other, own_norm, other_norm in zip(text[0], reference[0], text[1], reference[1], strict=True):
        shared = sum(min(value, other.get(gram, 0.0)) * other.get(gram, 0.0) for gram, value in own.items())
        values.append(shared / (own_norm * other_norm) if own_norm and other_norm else shared)
    return sum(values) / MAX_NGRAM * math.exp(-((text[2] - reference[2]) ** 2) / (2 * LENGTH_DEVIATION**2))
