"""The README's figures are those of the committed rows."""

from benchmarks import readme


def test_results_are_generated():
    match = readme.MARKS.search(readme.README.read_text())
    assert match
    assert match[0] == match[1] + readme.block() + match[2]


def test_pictures_exist():
    text = readme.README.read_text()
    pictures = [part.split(")")[0] for part in text.split("](")[1:]]
    files = [name for name in pictures if name.endswith(".png")]
    assert files
    assert all((readme.ROOT / name).is_file() for name in files)
