import pytest

from frozen_jax.errors import UserError
from frozen_jax.metrics.nouns import head_noun, names_noun, read_wordnet

HEADER = "  1 This stands for the licence.\n"
DATA = HEADER + "".join(
    line + " | a gloss that says % and @\n"
    for line in (
        "00000001 03 n 02 thing 0 object 1 000",
        "00000002 05 n 01 canine 0 001 @ 00000001 n 0000",
        "00000003 05 n 03 dog 0 domestic_dog 0 Canis_familiaris 0 002 @ 00000002 n 0000 #m 00000001 n 0000",
        "00000004 06 n 02 fire_engine 0 fire_truck 0 001 @ 00000005 n 0000",
        "00000005 06 n 02 truck 0 motortruck 0 001 @ 00000001 n 0000",
        "00000006 18 n 01 knave 0 001 @i 00000001 n 0000",
        "00000007 18 n 02 woman 0 adult_female 0 001 @ 00000001 n 0000",
        "00000008 10 n 01 dog 2 001 @ 00000001 n 0000",
    )
)
INDEX = HEADER + "".join(
    f"{lemma} n {len(places)} 1 @ {len(places)} 1 {' '.join(places)}  \n"
    for lemma, places in {
        "thing": ["00000001"],
        "canine": ["00000002"],
        "dog": ["00000003", "00000006", "00000008"],
        "fire_truck": ["00000004"],
        "fire_engine": ["00000004"],
        "truck": ["00000005"],
        "knave": ["00000006"],
        "a": ["00000001"],
        "woman": ["00000007"],
    }.items()
)


@pytest.fixture(scope="module")
def wordnet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wordnet")
    for name, content in (("data.noun", DATA), ("index.noun", INDEX), ("noun.exc", "women woman\noxen ox\n")):
        (folder / name).write_text(content)
    return read_wordnet(folder)


@pytest.mark.parametrize(
    ("caption", "noun"),
    [
        ("A brown dog.", "dog"),
        ("Two red fire trucks with ladders", "fire truck"),
        ("dogs of a truck", "dog"),
        ("women dancing", "woman"),
        ("A truck, and a dog", "truck"),
        ("an unheard-of gizmo", "gizmo"),
        ("With a dog", "dog"),
        ("A pair of dogs.", "dog"),
        ("A gizmo.", "gizmo"),  # "a" is a noun in WordNet
        ("123 !", ""),
    ],
)
def test_head_noun(wordnet, caption, noun):
    assert head_noun(caption, wordnet) == noun


def test_synonyms_and_what_is_directly_above_are_accepted(wordnet):
    accepted = wordnet.accept("dog")
    assert accepted == {"dog", "domestic dog", "canis familiaris", "canine", "knave", "thing", "object"}
    assert wordnet.accept("fire truck") == {"fire truck", "fire engine", "truck", "motortruck"}
    assert wordnet.accept("gizmo") == {"gizmo"}


@pytest.mark.parametrize(
    ("text", "noun", "named"),
    [
        (" a fire engine.", "fire truck", True),
        ("Trucks", "fire truck", True),
        ("a dog", "fire truck", False),
        ("hot dogs", "dog", True),
        ("doghouse", "dog", False),
        ("a domestic-dog", "dog", False),
        ("", "dog", False),
        ("two women", "woman", True),
    ],
)
def test_nouns_are_found_as_words(wordnet, text, noun, named):
    assert names_noun(text, wordnet.accept(noun), wordnet) == named


def test_only_the_two_commonest_meanings_count(wordnet):
    """The third of "dog" has nothing but itself to add here, so one with its own name is put in its place."""
    senses = dict(wordnet.senses) | {"dog": ("00000003", "00000006", "00000007")}
    assert "woman" not in wordnet._replace(senses=senses).accept("dog")


@pytest.mark.parametrize("lacking", ["data.noun", "index.noun", "noun.exc"])
def test_a_directory_that_is_no_wordnet_is_refused(tmp_path, lacking):
    for name, content in (("data.noun", DATA), ("index.noun", INDEX), ("noun.exc", "women woman\n")):
        (tmp_path / name).write_text("ruined" if name == lacking else content)
    with pytest.raises(UserError, match=r"give the directory of data\.noun"):
        read_wordnet(tmp_path)
    (tmp_path / lacking).unlink()
    with pytest.raises(UserError, match=r"give the directory of data\.noun"):
        read_wordnet(tmp_path)
