"""kae data: list, prepare and verify datasets."""

from pathlib import Path

import click

from kae import common


@click.group("data")
def command():
    """List, prepare and verify datasets."""


@command.command("list")
@common.data_dir_option
@common.json_option
def list_(data_dir, as_json):
    """List the datasets that are prepared on this machine."""
    from keras_ae import data

    rows = data.available(data_dir)
    if as_json:
        return common.print_json(
            {
                "data_dir": str(data.resolve_data_dir(data_dir)),
                "datasets": [
                    {
                        "name": row.name,
                        "version": row.version,
                        "format": row.format,
                        "splits": row.splits,
                        "path": str(row.path),
                    }
                    for row in rows
                ],
            }
        )
    for row in rows:
        splits = ", ".join(f"{name} {count}" for name, count in row.splits.items())
        click.echo(f"{row.name} {row.version}  {splits}  {row.path}")
    if not rows:
        common.say(f"Nothing is prepared in {data.resolve_data_dir(data_dir)}.")
    return None


@command.command()
@click.argument("name")
@common.data_dir_option
@click.option("--from", "source", type=click.Path(path_type=Path), help="Folder of its IDX files.")
def prepare(name, data_dir, source):
    """Prepare a dataset: from the package (mnist), its home on the net, or files that you have."""
    from keras_ae import data

    prepared = data.prepare(name, data_dir, source, progress=common.say)
    click.echo(prepared.path)


@command.command()
@click.argument("name")
@common.data_dir_option
@common.json_option
def verify(name, data_dir, as_json):
    """Read a whole prepared dataset again and check counts and contents."""
    from keras_ae import data

    report = data.verify(name, data_dir)
    if as_json:
        return common.print_json(report)
    click.echo(f"{report['name']} {report['version']} ({report['format']}) in {report['path']}")
    for split, facts in report["splits"].items():
        shape = "x".join(map(str, facts["shape"]))
        known = {True: "genuine", False: "not the known content", None: "no known content"}
        click.echo(
            f"  {split}: {facts['images']} images of {shape}, {known[facts['genuine']]}, "
            f"sha256 {facts['sha256']}"
        )
    return None
