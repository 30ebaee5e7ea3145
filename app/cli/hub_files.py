"""Which of a hub's dataset files an entry means: by its card's `configs`, else by the names of the files.

The rules are those of Hugging Face's `datasets` library, as far as data files go
(https://huggingface.co/docs/hub/datasets-data-files-configuration); scripts are never run.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import PurePosixPath
from typing import Any

from app.cli.dataset_info import suffix

DATA = (".json", ".jsonl", ".parquet", ".csv", ".tsv", ".txt")
# Files with a data file's ending that describe the repository.
DESCRIPTIONS = {
    "dataset_info.json",
    "dataset_infos.json",
    "configuration.json",
    "config.json",
    "requirements.txt",
    "license.txt",
}
# What the names of files call a split, the split's own name aside.
WORDS = {
    "train": ("training",),
    "validation": ("valid", "val", "dev"),
    "test": ("testing", "eval", "evaluation"),
}
SHARD = re.compile(r"(?:^|/)([\w.]+)-\d{5}-of-\d{5}(?:-[0-9a-f]+)?\.")


class NoFiles(Exception):
    """No file is what was asked for; the text says why."""


def choose(paths: list[str], card: dict[str, Any], subset: str | None, split: str, folder: str | None) -> list[str]:
    """Those of a repository's `paths` that hold the split of the subset (None: the default one), beneath `folder`.

    `card` is the metadata of the repository's README. Raises `NoFiles`.
    """
    if not re.fullmatch(r"[\w.-]+", split):
        raise NoFiles(f"the split '{split}' is a slice; num_samples takes a part of one")
    data = sorted(path for path in paths if _is_data(path))
    if not data:
        raise NoFiles(f"none of its {len(paths)} files ends in {', '.join(DATA)} (or these with .gz or .zst)")
    configs = [config for config in card.get("configs") or [] if isinstance(config, dict)]
    if folder is not None:
        chosen = _of_split(_beneath(data, folder), split)
    elif configs and (config := _config(configs, subset)) is not None:
        chosen = _of_config(config, data, split)
    else:
        chosen = _of_split(_of_subset(data, subset) if subset else data, split)
    # The same rows in another format would be taken twice.
    most = Counter(suffix(path) for path in chosen).most_common(1)[0][0]
    return [path for path in chosen if suffix(path) == most]


def _is_data(path: str) -> bool:
    name = PurePosixPath(path).name.lower()
    hidden = any(part.startswith((".", "/")) for part in PurePosixPath(path).parts)
    return suffix(name) in DATA and name not in DESCRIPTIONS and not hidden


def _beneath(data: list[str], folder: str) -> list[str]:
    root = folder.strip("/").removeprefix("./")
    found = [path for path in data if path.startswith(f"{root}/")]
    if not found:
        raise NoFiles(f"it has no data files in the folder '{folder}'")
    return found


def _config(configs: list[dict[str, Any]], subset: str | None) -> dict[str, Any] | None:
    """The card's config of this name; without a name the default one. None where the card leaves it open."""
    if subset is None:
        default = [
            config for config in configs if config.get("default") is True or config.get("config_name") == "default"
        ]
        if not default and len(configs) > 1:
            raise NoFiles(f"it has several subsets, and the entry names none: {_names(configs, 'config_name')}")
        return (default or configs)[0]
    named = [config for config in configs if config.get("config_name") == subset]
    if not named and any("data_files" in config for config in configs):
        raise NoFiles(f"it has no subset '{subset}', but {_names(configs, 'config_name')}")
    return named[0] if named else None


def _of_config(config: dict[str, Any], data: list[str], split: str) -> list[str]:
    """The files of a config's split. `data_files` is a pattern, a list of them, or a list of `{split, path}`."""
    root, listed = config.get("data_dir"), config.get("data_files")
    if root:
        data = _beneath(data, str(root))
    if not listed:
        return _of_split(data, split)
    entries = listed if isinstance(listed, list) else [listed]
    by_split = [entry for entry in entries if isinstance(entry, dict)]
    if by_split:
        entries = [entry.get("path") for entry in by_split if str(entry.get("split", "train")) == split]
        if not entries:
            raise NoFiles(f"it has no split '{split}', but {_names(by_split, 'split')}")
    elif split != "train":
        raise NoFiles(f"it has no split '{split}', but 'train'")
    patterns = [str(one) for entry in entries for one in (entry if isinstance(entry, list) else [entry])]
    prefix = f"{str(root).strip('/')}/" if root else ""
    matches = [_pattern(prefix + pattern.removeprefix("./")) for pattern in patterns]
    found = [path for path in data if any(match.fullmatch(path) for match in matches)]
    if not found:
        raise NoFiles(f"no data file matches {', '.join(patterns)}")
    return found


def _of_subset(data: list[str], subset: str) -> list[str]:
    """The files in a folder of the subset's name, else those with it in their names."""
    found = [path for path in data if subset in PurePosixPath(path).parent.parts]
    found = found or [path for path in data if _has_word(PurePosixPath(path).name, subset)]
    if not found:
        raise NoFiles(f"it has no subset '{subset}': no folder and no file is called so")
    return found


def _of_split(data: list[str], split: str) -> list[str]:
    """The files of a split: shards say it exactly, other names by a word; what names no split is `train`."""
    shards = {path: match[1] for path in data if (match := SHARD.search(path))}
    known = {word: name for name, words in WORDS.items() for word in (name, *words)}
    found = [path for path, name in shards.items() if name == split]
    if not found:
        own = (split, *WORDS.get(split, ()))
        found = [path for path in data if path not in shards and any(_has_word(path, word) for word in own)]
    if not found and split == "train":
        found = [path for path in data if not any(_has_word(path, word) for word in known)]
    if not found:
        raise NoFiles(f"it has no split '{split}': no file is called so")
    return found


def _has_word(path: str, word: str) -> bool:
    return re.search(rf"(?:^|[-._ /0-9]){re.escape(word)}(?:[-._ /0-9]|$)", path) is not None


def _pattern(glob: str) -> re.Pattern[str]:
    """A shell pattern with `**`, as the hubs' cards have them."""
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    pieces = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]/]+\])", glob)
    classes = {one: one.replace("[!", "[^", 1) for one in pieces if one.startswith("[")}
    return re.compile("".join((parts | classes).get(one) or re.escape(one) for one in pieces))


def _names(entries: list[dict[str, Any]], key: str) -> str:
    names = [str(entry.get(key)) for entry in entries]
    return ", ".join(f"'{name}'" for name in names[:10]) + (" …" if len(names) > 10 else "")
