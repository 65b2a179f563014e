"""``cnnkit audio score``. No torch at import."""

from __future__ import annotations

from pathlib import Path

import click

PATH = click.Path(path_type=Path)  # type: ignore[type-var]


@click.command()
@click.argument("hypotheses", type=PATH)
@click.argument("references", type=PATH)
@click.option("--partition", default="dev", show_default=True, metavar="NAME", help="Part of CHiME-7 in its own layout: dev or eval.")
@click.option("--scenario", "only", multiple=True, metavar="NAME", help="Score this scenario, and others that are named; all by default.")
@click.option("--oracle", is_flag=True, help="The segmentation is the references', and speakers have their names there.")
@click.option(
    "--collar",
    type=click.FloatRange(min=0),
    default=0.5,
    show_default=True,
    metavar="SECONDS",
    help="Time around each boundary of the references, half on either side, that does not count in the assignment of speakers.",
)
@click.option("--uem", type=PATH, metavar="FILE", help="Lines SESSION CHANNEL START END of the time that counts; CHiME-7's own by default.")
@click.option("--normalise", is_flag=True, help="Compare words in CHiME-7's spelling: lower case, no punctuation, no notes.")
@click.option("-o", "--output", type=PATH, metavar="FOLDER", help="Write scenarios.csv and sessions.csv there.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; a rate without words is null.")
def score(
    hypotheses: Path,
    references: Path,
    partition: str,
    only: tuple[str, ...],
    oracle: bool,
    collar: float,
    uem: Path | None,
    normalise: bool,
    output: Path | None,
    as_json: bool,
) -> None:
    """Score transcripts with speakers and sessions: DA-WER of each scenario, and their macro average, by CHiME-7's rules.

    HYPOTHESES is SCENARIO.json, or a folder of these: lists of utterances with session_id, speaker, start_time, end_time and words.
    REFERENCES is a file, a folder of SCENARIO.json, or CHiME-7's root with SCENARIO/transcriptions_scoring/PARTITION/SESSION.json.
    Speakers are assigned by the time that they share with those of the references; their names do not matter but with --oracle.
    """
    import json

    from cnnkit.engine.files import writable_folder

    from cnnkit_audio.recognition.scoring import find_scenarios
    from cnnkit_audio.recognition.scoring import score as measure

    folder = None if output is None else writable_folder(output)
    scenarios = find_scenarios(hypotheses, references, partition=partition, only=only, uem=uem)
    scores = measure(scenarios, diarised=not oracle, collar=collar, normalised=normalise)
    files = [] if folder is None else scores.write(folder)
    click.echo(json.dumps(scores.data() | {"files": list(map(str, files))}, indent=2) if as_json else scores.table())
    for file in files if not as_json else []:
        click.echo(file)
