"""Caption tokenizer: English text into the words that the usual caption evaluation counts.

Here: `tokenize_caption`. Not here: the metrics (captions.py, next in the data flow).

The reference is what pycocoevalcap 1.2 does: a Penn Treebank tokenizer in Java (Stanford's, `-preserveLines
-lowerCase`), then punctuation is dropped. The rules below were fitted to that program's answers on probes, so that no
Java is needed. Like it, they work as a longest-match lexer: at each position every rule is tried, the one that reaches
furthest (what it looks ahead at included) wins, the first of equals.

Known deviations, rare in captions. The reference reads captions joined by newlines and may look into the next one: a
caption that ends in a single letter and a period ("plan B.") keeps that period or not depending on its neighbour; here
each caption stands alone. Kept as one token there and as several here: telephone numbers with brackets or spaces,
mixed fractions ("1 1/2"; only ROUGE-L sees that one), file names with digits, addresses with a port or a login.
Dropped here: symbols outside European and East Asian text.
"""

from __future__ import annotations

import re
from functools import lru_cache

_L = r"(?:[^\W\d_²³¹¼-¾⁰-₉⅐-⅟①-⓿❶-➓\U00010000-\U0010ffff]|[\u0300-\u036f\u0900-\u0903\u093c-\u094f])"  # letter
_N = rf"(?:{_L}|\d)"  # letter or digit
_A = "['’\x92]"  # apostrophe
_H = "[-‐‑]"  # hyphen within a word
_CLITIC = rf"{_A}(?i:[smd]|re|ve|ll)(?![A-Za-z])"
_NOT = rf"(?i:n){_A}(?i:t)(?![A-Za-z])"
_ACRONYM = r"[A-Za-z](?:\.[A-Za-z])+\."
_ELIDED = rf"(?i:[dol]){_A}(?={_N}{_N})"  # the d' of d'artagnan, the o' of o'clock


def _any(words: str) -> str:
    return "|".join(words.split())


# Abbreviations that keep their period.
_ABBREVIATIONS = _any(
    r"""adj adm adv ala alex al apr ariz assn asst assoc atty attys aug ave bhd bldg blvd brig bros calif capt
    cf cie cmdr co col colo comdr conn corp cos cpl ct dak dec dept det dr drs elec ens esq est etc ext feb fla
    fri ft ga gen gov govs hon inc ind insp intl invt jan jos jr jul jun kan kans ky lieut lt ltd maj mar md
    messrs mfg mich minn mlle mme mo mon mont mr mrs ms msgr mt mtg natl neb nev nov oct okla penn pfc ph ph\.d
    plc ppte ppty pres prof pte ptes pty ptys pvt rd rep reps rev rt sen sens sep sept seq sfc sgt spc sq sr st
    ste supt sys tel tenn thu thurs treas tue tues univ va vs vt wed wis wisc wm wyo"""
)
_CAPITALISED_ABBREVIATIONS = _any(
    "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash ARK AZ DEL ILL LA MASS MISS ORE PA TEX WASH"
)
_BEFORE_NUMBER = _any("art ca fig figs no nos op pp prop")
_SENTENCE_STARTS = _any(
    """A About According Additionally After An As At But Earlier He Her Here However If In It Last Many More Now Once
    One Other Our She Since So Some Such That The Their Then There These They This We What When While Yet You"""
)

# Each rule's group 1 is the token; what it matches beyond that is looked at and read again.
_RULES = tuple(
    re.compile(rule)
    for rule in (
        # Markup, entities, brackets already spelt out.
        r"(</?[A-Za-z!][^<>]*>)",
        r"(&(?i:lt|gt|quot|nbsp|[mn]dash|#\d+);)",
        r"(-[LR][RSC]B-)",
        # Contractions and words that are split in two.
        rf"({_L}{_N}*){_CLITIC}",
        rf"({_L}{_N}*?){_NOT}",
        rf"({_CLITIC}|{_NOT})",
        r"((?i:'t))(?i:is|was)",
        r"((?i:can))(?i:not)",
        r"((?i:gon|wan))(?i:na)",
        r"((?i:got))(?i:ta)",
        r"((?i:gim|lem))(?i:me)",
        # Words with apostrophes of their own.
        rf"({_A}(?i:till?|em|cause|kay|nuff|n{_A}?|[2-9]0s)|{_A}\d\d(?=\s|$)|(?i:dunkin|ol|somethin){_A})",
        rf"((?i:[djl]){_A})",
        rf"((?i:y){_A}){_L}",
        rf"({_ELIDED}{_N}+|[A-HJ-XZn]{_A}{_L}{{2,}}|{_L}+[aeiouyAEIOUY]{_A}[aeiouA-Z]{_L}*|(?i:[eo]{_A}(?:er|o)))",
        r"((?i:c'mon|cap'n|ev'ry|li'l|nat'l|nor'easter|s'mores))",
        # Abbreviations.
        rf"((?i:{_ABBREVIATIONS}|[a-z])\.|(?:{_CAPITALISED_ABBREVIATIONS})\.)",
        rf"([A-Za-z])\.\s+(?:{_SENTENCE_STARTS}|{_SENTENCE_STARTS.upper()})(?:\s|$)",
        rf"((?i:{_BEFORE_NUMBER})\.)\s?\d",
        rf"({_N}+(?:{_H}{_N}+)*\.)[,;:]",
        rf"({_ACRONYM})",
        # Words, compounds, numbers.
        rf"({_L}{_N}*(?:[.!?]{_L}{_N}*)*|{_N}+)",
        rf"({_N}+(?:[-_‐‑]{_N}+)+)",
        rf"({_N}(?:{_N}|[.,])*(?:{_H}(?:{_ACRONYM}|(?:{_ELIDED})?{_N}+))+)",
        r"([A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2})",
        r"([+-]?(?:\d*(?:[.,:]\d+)+|\d+))",
        r"([vV]?\d+(?:\.\d+)*\.[xX])",
        r"([A-Z]+(?:[&+][A-Z]+)+|(?i:c\+\+|[cf]#))",
        # The net.
        r"((?i:https?)://[^\s<>\"()]+\.[^\s<>\"()]*[^\s<>\"().,;:!?])",
        r"((?:[A-Za-z0-9]+\.)+(?i:com|net|org|edu)(?:/[^\s<>\"()]*[^\s<>\"().,;:!?])?)",
        r"((?i:www)\.(?:[\w-]+\.)+[A-Za-z]+)",
        r"([A-Za-z0-9][^\s<>\"()|@]*@(?:[^\s<>\"()|.]+\.)*[^\s<>\"()|.]+)",
        r"(@[A-Za-z_][A-Za-z_0-9]*|#[A-Za-z]+)",
        r"([<>]?[:;=]['o*-]?[()\[\]{DdPpO\\|@](?![A-Za-z0-9])|:3|\(?(?:\^[_.]\^|-_-|>_<|=_=)\)?)",
        # Punctuation and symbols.
        rf"({_A}){_L}{_L}",
        r"(\.{3,5}|-{5,}|-{2,4}|''|``|[?!]+|_+|\*+|#+|<<|>>|[A-Z]*\$)",
        r"([()\[\]{}%&+/<=>@\\^|~¡-©¬®-´¶-¹¼-¿×÷·€₤‖‗‚„-•‰-‸※‾-⁂⁰⁴-⁾₀-₎℀℁℃-℆℈℉℔№-℘℞-℣℥℧℩℮℺℻⅀-⅄⅊-⅍⅏⅓-⅞])",
        r"([←-\u2bff、。〒・！-／：-＠［-｀｛-･￠￡￥￦])",
    )
)
_PLAIN = re.compile(r"([A-Za-z]+)(?=,? |,?$)")
_SPLIT = frozenset(("cannot", "gonna", "wanna", "gotta", "gimme", "lemme"))
_SPELT = {
    **{"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"},
    **{"£": "#", "€": "$", "¤": "$", "¢": "cents", "½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"},
    **{"&lt;": "<", "&gt;": ">", "&quot;": "", "&nbsp;": "", "&mdash;": "", "&ndash;": ""},
    **{f"{mark}{clitic}": f"'{clitic}" for mark in "’\x92" for clitic in ("s", "m", "d", "re", "ve", "ll")},
    **{f"n{mark}t": "n't" for mark in "’\x92"},
}
# Brackets stay (as -lrb-), because the reference drops only their upper-case spelling, of which lower-casing leaves
# none; runs such as "!!" stay because its list does not have them. Quotation marks match no rule and are dropped so.
_DROPPED = re.compile(rf"{_A}|''|``|[.?!,:;]|-{{1,4}}|\.{{3,5}}")


@lru_cache(maxsize=1 << 17)
def tokenize_caption(text: str) -> tuple[str, ...]:
    """Splits a caption into lower-case Penn Treebank tokens without punctuation.

    Example: `"It's a man's t-shirt (blue), isn't it?"` -> `it 's a man 's t-shirt -lrb- blue -rrb- is n't it`.

    Args:
        text: one caption. Line breaks count as spaces; characters beyond U+FFFF (emoji) are dropped.

    Returns:
        The tokens, none of which holds white space. Empty for an empty caption or one of punctuation only.

    Source: behaviour of pycocoevalcap 1.2's tokenizer (see the head of this file for the deviations).
    """
    text = text.replace("\u00ad", "").replace("\u00a0", " ").replace("&apos;", "'").replace("&amp;", "&")
    tokens: list[str] = []
    start = 0
    while start < len(text):
        plain = _PLAIN.match(text, start)
        if plain and plain[1].lower() not in _SPLIT:
            tokens.append(plain[1].lower())
            start = plain.end()
            continue
        longest = max((found for rule in _RULES if (found := rule.match(text, start))), key=re.Match.end, default=None)
        if longest is None:
            start += 1
            continue
        start = longest.end(1)
        token = longest[1].lower()
        if not _DROPPED.fullmatch(token):
            token = _SPELT.get(token, token)
            tokens.extend(token.replace("(", "-lrb-").replace(")", "-rrb-").split())
    return tuple(tokens)
