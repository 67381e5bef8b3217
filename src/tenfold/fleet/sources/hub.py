"""``hf:org/repo``: files of a repository on a Hugging Face hub.

    hf:org/repo                   config, tokeniser and safetensors; or the only GGUF file
    hf:org/repo/folder/x.gguf     one file
    hf:org/repo@revision/x.gguf   at a branch, tag or commit

huggingface_hub gives addresses, the user's token and the list of files (HF_ENDPOINT and HF_TOKEN
hold as everywhere); the bytes come through ``download``, which goes on after an interruption.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenfold.core.errors import PullError
from tenfold.fleet.sources.base import FileSpec, Job, inside
from tenfold.fleet.sources.download import Download, refusal

_WANTED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.*",
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/*",
)


@dataclass(slots=True, frozen=True)
class _Remote:
    """A file there. ``blob`` is git's hash of a file too small to have a sha256 of its own."""

    path: str
    spec: FileSpec
    blob: str = ""


class HubSource:
    def __init__(self, text: str) -> None:
        self.text = text
        words = text.removeprefix("hf:").strip("/").split("/")
        if len(words) < 2 or not all(words):
            raise PullError(f"{text!r} must be written hf:org/repo or hf:org/repo/file")
        repository, _, revision = words[1].partition("@")
        self.repository = f"{words[0]}/{repository}"
        self.revision = revision or "main"
        self.file = "/".join(words[2:])

    def fetch(self, job: Job) -> list[FileSpec]:
        remotes, revision = self._remotes(job)
        total = sum(remote.spec.size for remote in remotes) or None
        job.work.mkdir(parents=True, exist_ok=True)
        done = 0
        for remote in remotes:
            part = self._download(remote, revision, job, done, total)
            done += part.stat().st_size
            part.rename(inside(job.stage, remote.spec.name))
        return [remote.spec for remote in remotes]

    def _remotes(self, job: Job) -> tuple[list[_Remote], str]:
        """What to fetch, and the revision to fetch it at."""
        known = bool(job.files) and all(spec.sha256 for spec in job.files)
        if known and self.file and len(job.files) == 1:
            return [_Remote(self.file, job.files[0])], self.revision
        if known and not self.file:
            return [_Remote(spec.name, spec) for spec in job.files], self.revision
        if self.file and len(job.files) > 1:
            raise PullError(f"{self.text} is one file, and {len(job.files)} are wanted")
        info = self._info()
        listed = {remote.path: remote for remote in map(_remote, info.siblings or [])}
        wanted = [spec.name for spec in job.files] if not self.file else [self.file]
        for path in wanted:
            if path not in listed:
                raise PullError(f"{self.repository} holds no {path}")
        chosen = wanted or choose(sorted(listed), self.repository)
        # One commit for all files: the repository may change while they come.
        return [listed[path] for path in chosen], info.sha or self.revision

    def _info(self) -> Any:
        from huggingface_hub import HfApi

        # Read here and not by the library, which looks at the variable only when it is imported.
        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
        try:
            return api.model_info(self.repository, revision=self.revision, files_metadata=True)
        except Exception as exc:
            # Any: which HTTP library raises here differs between versions of huggingface_hub.
            status = getattr(getattr(exc, "response", None), "status_code", None)
            line = " ".join(str(exc).split())[:200]
            raise PullError(refusal(status) if status else f"no answer: {line}") from exc

    def _download(
        self, remote: _Remote, revision: str, job: Job, done: int, total: int | None
    ) -> Path:
        from huggingface_hub import get_token, hf_hub_url

        token = get_token()
        # The hash is part of the name, so that a part of another version is never gone on with.
        mark = remote.spec.sha256 or remote.blob or revision
        flat = remote.path.replace("/", "--")
        part = job.work / f"{flat}.{mark[:16]}.part"
        Download(
            hf_hub_url(
                self.repository,
                remote.path,
                revision=revision,
                endpoint=os.environ.get("HF_ENDPOINT") or None,
            ),
            part,
            size=remote.spec.size,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            on_bytes=lambda count: job.progress(f"fetching {remote.path}", done + count, total),
        ).run()
        if remote.blob and _git_blob(part) != remote.blob:
            part.unlink()
            raise PullError(f"{remote.path} came damaged: its git hash is not {remote.blob}")
        return part


def choose(paths: list[str], repository: str) -> list[str]:
    """The files of a repository that make up one model.

    Safetensors with configuration and tokeniser; otherwise its GGUF file, when it has just one.
    Raises PullError when neither is there.
    """
    if "config.json" in paths and any(path.endswith(".safetensors") for path in paths):
        return [p for p in paths if any(fnmatch.fnmatchcase(p, pattern) for pattern in _WANTED)]
    ggufs = [path for path in paths if path.endswith(".gguf")]
    if len(ggufs) == 1:
        return ggufs
    if ggufs:
        raise PullError(
            f"{repository} holds {len(ggufs)} GGUF files; name one, as hf:{repository}/{ggufs[0]}"
        )
    raise PullError(f"{repository} holds neither safetensors with a config.json nor a GGUF file")


def _remote(sibling: Any) -> _Remote:
    """One entry of the hub's list. Large files carry a sha256, the others git's own hash."""
    lfs = sibling.lfs
    sha256 = lfs.sha256 if lfs is not None else ""
    spec = FileSpec(sibling.rfilename, sha256, sibling.size or 0)
    return _Remote(sibling.rfilename, spec, "" if sha256 else sibling.blob_id or "")


def _git_blob(path: Path) -> str:
    """Git's name for a file's content: sha1 over a header and the bytes."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
