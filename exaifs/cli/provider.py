"""`exaifs provider`: file ids at LLM providers, as `user.exai.provider.NAME` shows them."""

from __future__ import annotations

from typing import Any, Final

import click
import trio

from exaifs import logs
from exaifs.cli.command import (
    CONTEXT,
    Session,
    Span,
    bucket,
    command as define,
    log_level,
    pass_session,
    write_examples,
)
from exaifs.cli.output import note, say, say_json
from exaifs.config import Config
from exaifs.ops.providers import ProviderOps, Pruned, configured, described
from exaifs.providers.settings import ProvidersConfig

_HOUR_S: Final = 3600
_MAX_HOURS: Final = 500_000
_NAME_WIDTH: Final = 12
_STATE_WIDTH: Final = 10
_ID_WIDTH: Final = 34

EXAMPLES: Final = (
    ("exaifs provider list", "which providers are turned on, and whether their keys are set"),
    ("exaifs provider id kimi reports/q3.pdf", "the file's id; uploads the file if there is none"),
    ("exaifs provider check kimi", "does the provider take the key?"),
    ("exaifs provider prune kimi --dry-run", "what is there that no file needs any more"),
)


class _Group(click.Group):
    """A group whose help ends with examples."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(formatter, EXAMPLES)
        super().format_epilog(ctx, formatter)


@click.group("provider", cls=_Group, context_settings=CONTEXT)
def command() -> None:
    """File ids at LLM providers, as the attribute user.exai.provider.NAME shows them.

    Off until configured: EXAIFS_PROVIDERS=kimi,openai turns built-in ones on, EXAIFS_PROVIDERS_FILE names a
    TOML file for others. Keys come from the environment or from files, and are never shown.
    """


json_flag = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
provider = click.argument("name", metavar="NAME")


@define("list", examples=(("exaifs provider list", "one line a provider"),))
@json_flag
@log_level
@pass_session
def list_(session: Session, /, *, as_json: bool, log_level: str | None) -> None:
    """Show the providers that are turned on. Nothing is asked."""
    _, providers = _load(session, log_level=log_level)
    shown = [described(settings) for settings in providers.provider.values()]
    if as_json:
        say_json({"providers": shown}, session.redact)
        return
    for one in shown:
        say(
            f"{one['name']:<{_NAME_WIDTH}} key {one['key']:<8} {one['base_url']}  "
            f"purpose {one['purpose'] or '-'}, up to {one['max_bytes'] // 1_000_000} MB, "
            f"uploads: {one['upload']}"
        )
        if one["problem"]:
            note(f"{'':<{_NAME_WIDTH}} {one['problem']}")


@define(
    "id",
    examples=(
        ("exaifs provider id kimi reports/q3.pdf", "print the id, uploading the file if there is none"),
        ("exaifs provider id --refresh openai a.txt", "ask the provider first whether it still has it"),
    ),
)
@provider
@click.argument("path", metavar="PATH")
@click.option("--refresh", is_flag=True, help="Check a stored id at the provider.")
@bucket
@json_flag
@log_level
@pass_session
def id_(session: Session, /, *, name: str, path: str, refresh: bool, as_json: bool, **flags: Any) -> None:
    """Print the id of the file PATH, in the bucket or in a mount; upload the file if it has none."""
    config, providers = _load(session, **flags)

    async def run() -> dict[str, Any]:
        async with ProviderOps.open(config, providers, name) as ops:
            return await ops.file_id(path, refresh=refresh)

    found = trio.run(run)
    if as_json:
        say_json(found, session.redact)
    else:
        say(found["id"])


@define(
    "check",
    examples=(
        ("exaifs provider check kimi", "does the provider take the key?"),
        ("exaifs provider check kimi a.pdf b.pdf", "does it still have these files' ids?"),
    ),
)
@provider
@click.argument("paths", metavar="[PATH]...", nargs=-1)
@bucket
@json_flag
@log_level
@pass_session
def check(session: Session, /, *, name: str, paths: tuple[str, ...], as_json: bool, **flags: Any) -> int:
    """Ask a provider whether it takes the key, or whether it still has the ids of files.

    Nothing is changed. The exit code is 1 when an id is gone.
    """
    config, providers = _load(session, **flags)

    async def run() -> list[dict[str, Any]]:
        async with ProviderOps.open(config, providers, name) as ops:
            if not paths:
                await ops.check_key()
            return await ops.check(paths)

    answers = trio.run(run)
    if as_json:
        key = None if paths else "good"  # with paths it was not asked about
        say_json({"provider": name, "key": key, "files": answers}, session.redact)
    elif not paths:
        say(f"{name} takes the key")
    for answer in () if as_json else answers:
        say(f"{answer['state']:<{_STATE_WIDTH}} {answer['id'] or '-':<{_ID_WIDTH}} {answer['path']}")
    return 1 if any(answer["state"] == "gone" for answer in answers) else 0


@define("forget", examples=(("exaifs provider forget kimi a.pdf", "the next read uploads it again"),))
@provider
@click.argument("path", metavar="PATH")
@bucket
@log_level
@pass_session
def forget(session: Session, /, *, name: str, path: str, **flags: Any) -> None:
    """Forget the id of the file PATH and of all files with the same content.

    The provider keeps its file until `exaifs provider prune` deletes it.
    """
    config, providers = _load(session, **flags)

    async def run() -> None:
        async with ProviderOps.open(config, providers, name) as ops:
            await ops.forget(path)

    trio.run(run)


@define(
    "prune",
    examples=(
        ("exaifs provider prune kimi --dry-run", "show what would be deleted"),
        ("exaifs provider prune kimi --older-than 168", "delete what is a week old and no file's"),
    ),
)
@provider
@click.option("-n", "--dry-run", is_flag=True, help="Show what would be deleted.")
@click.option(
    "--older-than",
    "older_h",
    type=Span(min=0, max=_MAX_HOURS),
    default=24.0,
    show_default=True,
    metavar="HOURS",
    help="Leave younger uploads: a chat may be using them.",
)
@bucket
@json_flag
@log_level
@pass_session
def prune(
    session: Session, /, *, name: str, dry_run: bool, older_h: float, as_json: bool, **flags: Any
) -> int:
    """Delete files at a provider whose content is gone or changed here.

    Only files that were uploaded from this project are touched, and none that a file still has as its id.
    Meant for providers with small limits: Kimi keeps 1,000 files, GLM 100.
    """
    config, providers = _load(session, **flags)

    async def run() -> Pruned:
        async with ProviderOps.open(config, providers, name) as ops:
            return await ops.prune(older_s=int(older_h * _HOUR_S), dry_run=dry_run)

    pruned = trio.run(run)
    if as_json:
        say_json(pruned.to_json(dry_run=dry_run), session.redact)
        return 1 if pruned.failed else 0
    for upload in pruned.deleted:
        say(f"{upload.id:<{_ID_WIDTH}} {upload.size_bytes:>12} bytes  {upload.noted_at}")
    for upload, reason in pruned.failed:
        note(session.redact(f"not deleted: {upload.id}: {reason}"))
    verb = "would be deleted" if dry_run else "deleted"
    count = len(pruned.deleted)
    note(f"{count:,} file{'s' * (count != 1)} {verb} at {name}")
    return 1 if pruned.failed else 0


def _load(session: Session, **flags: Any) -> tuple[Config, ProvidersConfig]:
    """Read both settings; from here on no key leaves the process.

    Raises:
        ConfigError: they are wrong, or no provider is turned on.
    """
    config = session.load(**flags)
    providers = configured(config)
    secrets = (*logs.secrets_of(config), *providers.secrets())
    session.redact = logs.setup(flags.get("log_level") or "warning", config.log_format, secrets)
    return config, providers


for _member in (list_, id_, check, forget, prune):
    command.add_command(_member)
