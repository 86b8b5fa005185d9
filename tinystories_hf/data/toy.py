"""The toy corpus: any number of simple stories from a seeded generator, without a network.

Following the paper (arXiv 2305.07759, section 2), a noun, a verb and an adjective are drawn first,
and a plot with a feature (dialogue, a moral, a twist, foreshadowing, a conflict, a bad ending) uses
them. Names, pronouns and objects are consistent within a story, and its end follows from its
beginning, so that a model of half a million parameters has something to learn in two minutes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

_T = TypeVar("_T")

# The version of the generated stories. Raise it when the same seed gives other stories;
# tests/data/test_toy.py fails until then.
TOY_FORMAT = 1
GIRLS = ("Lily", "Mia", "Anna", "Sue", "Zoe", "Emma", "Ella", "Rosie")
BOYS = ("Tom", "Ben", "Max", "Sam", "Leo", "Tim", "Jack", "Finn")
ANIMALS = ("cat", "dog", "rabbit", "bear", "duck", "mouse", "fox", "frog")
TRAITS = ("little", "happy", "kind", "curious", "brave", "shy", "silly", "clever")
THINGS = ("ball", "kite", "doll", "hat", "book", "drum", "boat", "car", "cup", "bell", "map", "key")
LOOKS = ("red", "blue", "green", "yellow", "big", "small", "shiny", "soft", "round", "old", "new")
PLACES = {"park": "in", "garden": "in", "forest": "in", "beach": "on", "farm": "on",
          "playground": "on", "river": "by", "hill": "on"}  # fmt: skip
SPOTS = ("under the bed", "behind the door", "in the tall grass", "near the old tree",
         "on the bench", "next to the pond", "in the box", "under a bush")  # fmt: skip
VERBS = ("play", "run", "jump", "sing", "dance", "paint", "dig", "swim", "draw", "hop")
FEARS = ("the dark", "the loud thunder", "the deep water", "the big slide", "the tall tree")
FOODS = ("cake", "soup", "bread", "pie", "apples", "cookies", "berries", "rice")
WEATHER = ("sunny", "windy", "rainy", "cold", "warm", "cloudy")
RISKS = (
    ("climb the wall", "climbed the wall", "fell down and hurt {his} leg"),
    ("touch the hot pan", "touched the hot pan", "burned {his} hand"),
    ("eat the green berries", "ate the green berries", "got a bad tummy ache"),
    ("go near the river alone", "went near the river alone", "fell into the cold water"),
    ("run on the wet floor", "ran on the wet floor", "slipped and bumped {his} head"),
)


def _mix(word: int) -> int:
    """Scramble 64 bits (the finalizer of splitmix64)."""
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB % 2**64
    return word ^ (word >> 31)


class Draw:
    """A splitmix64 generator per story: the same draws on every machine and Python version."""

    def __init__(self, seed: int, stream: int) -> None:
        # Mixed twice: otherwise the streams of consecutive stories would overlap but for one draw.
        self.state = _mix(_mix(seed % 2**64 + 1) + stream + 1)

    def below(self, bound: int) -> int:
        """Return an integer in [0, bound)."""
        self.state = (self.state + 0x9E3779B97F4A7C15) % 2**64
        return _mix(self.state) % bound

    def of(self, choices: Sequence[_T]) -> _T:
        """Return one of the choices."""
        return choices[self.below(len(choices))]

    def but(self, choices: Sequence[_T], *taken: _T) -> _T:
        """Return one of the choices that are not in `taken`."""
        return self.of([choice for choice in choices if choice not in taken])


@dataclass(frozen=True)
class Character:
    """A character of a story, with its pronouns."""

    name: str
    kind: str
    he: str
    him: str
    his: str

    @property
    def He(self) -> str:  # noqa: N802 - the word as it begins a sentence
        """Return the capitalized pronoun."""
        return self.he.capitalize()


def somebody(draw: Draw, *others: Character) -> Character:
    """Draw a girl, a boy or an animal whose name and kind differ from those of `others`."""
    taken = [other.name for other in others]
    girl = draw.below(2) == 0
    name = draw.but(GIRLS if girl else BOYS, *taken)
    kind = "girl" if girl else "boy"
    if draw.below(3) == 0:
        kind = draw.but(ANIMALS, *(other.kind for other in others))
    return Character(name, kind, *(("she", "her", "her") if girl else ("he", "him", "his")))


@dataclass(frozen=True)
class Scene:
    """The words that one story must use."""

    hero: Character
    friend: Character
    thing: str
    look: str
    verb: str
    place: str
    trait: str

    @property
    def toy(self) -> str:
        """Return the thing with its adjective, such as `red ball`."""
        return f"{self.look} {self.thing}"


def article(word: str) -> str:
    """Return a word with its indefinite article."""
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def draw_scene(draw: Draw) -> Scene:
    """Draw the characters and the words of a story."""
    hero = somebody(draw)
    return Scene(
        hero=hero,
        friend=somebody(draw, hero),
        thing=draw.of(THINGS),
        look=draw.of(LOOKS),
        verb=draw.of(VERBS),
        place=draw.of(list(PLACES)),
        trait=draw.of(TRAITS),
    )


def opening(draw: Draw, scene: Scene) -> str:
    """Return the sentences that introduce the hero, the verb and the place."""
    hero = scene.hero
    first = draw.of(
        (
            f"Once upon a time there was {article(scene.trait)} {hero.kind} named {hero.name}.",
            f"Once upon a time, {article(scene.trait)} {hero.kind} named {hero.name} lived near"
            f" the {scene.place}.",
            f"One day, {article(scene.trait)} {hero.kind} named {hero.name} went to the"
            f" {scene.place}.",
        )
    )
    second = draw.of(
        (
            f"{hero.name} loved to {scene.verb} {PLACES[scene.place]} the {scene.place} every day.",
            f"{hero.He} liked to {scene.verb} when it was {draw.of(WEATHER)}.",
            f"{hero.He} wanted to {scene.verb} all day long.",
        )
    )
    return f"{first} {second}"


def lost(draw: Draw, scene: Scene) -> list[str]:
    """Plot: a thing is lost and found, or never found (a bad ending)."""
    hero, friend, toy = scene.hero, scene.friend, scene.toy
    wrong = draw.of(SPOTS)
    right = draw.but(SPOTS, wrong)
    story = [
        f"{hero.name} had {article(toy)}. {hero.He} took the {scene.thing} to the {scene.place}"
        f" and began to {scene.verb}. Then {hero.he} looked around. The {scene.thing} was gone!",
        f'"{friend.name}, did you see my {toy}?" asked {hero.name}. "No," said {friend.name}, "but'
        f' I will help you." They looked {wrong}, but the {scene.thing} was not there.',
    ]
    if draw.below(4) == 0:
        return [
            *story,
            f"They looked all day, but they did not find the {toy}. {hero.name} was very sad and"
            f" went home without it.",
        ]
    return [
        *story,
        f'Then they looked {right}. "Here it is!" said {friend.name}. It was the {toy}!'
        f' {hero.name} was so happy. "Thank you, {friend.name}," said {hero.name}. From that day'
        f" on, {hero.he} took good care of the {scene.thing}.",
    ]


def share(draw: Draw, scene: Scene) -> list[str]:
    """Plot: two characters want the same thing; a conflict that ends in sharing, with a moral."""
    hero, friend, thing = scene.hero, scene.friend, scene.thing
    feeling = draw.of(("sad", "angry", "lonely"))
    return [
        f"{hero.name} had {article(scene.toy)}. {hero.his.capitalize()}"
        f' friend {friend.name} saw the {thing}. "Can I have a turn with the {thing}?" asked'
        f' {friend.name}. "No, it is mine!" said {hero.name}.',
        f"{friend.name} was {feeling} and walked away. Now {hero.name} had the {thing}, but nobody"
        f" to {scene.verb} with. It was no fun to {scene.verb} alone.",
        f'{hero.name} went to {friend.name}. "I am sorry," said {hero.name}. "We can share the'
        f' {thing}." {friend.name} smiled. They began to {scene.verb} with the {scene.toy} and were'
        f" happy. {hero.name} learned that it is good to share.",
    ]


def fear(draw: Draw, scene: Scene) -> list[str]:
    """Plot: the hero is afraid, is helped, and becomes brave."""
    hero, friend = scene.hero, scene.friend
    what = draw.of(FEARS)
    return [
        f"But {hero.name} was afraid of {what}. One {draw.of(WEATHER)} day, {hero.he} saw {what}"
        f' and began to cry. "I am scared," said {hero.name}.',
        f'{friend.name} came and sat next to {hero.him}. "Do not be afraid of {what}," said'
        f' {friend.name}. "Take this {scene.toy}. It will help you to be brave."',
        f"{hero.name} held the {scene.toy} and took a deep breath. {hero.He} was not afraid of"
        f" {what} anymore! {hero.name} gave {friend.name} a big hug. After that, {hero.he} was a"
        f" brave {hero.kind}.",
    ]


def warning(draw: Draw, scene: Scene) -> list[str]:
    """Plot: a warning comes true or is heeded; foreshadowing, a bad ending, a moral."""
    hero, friend = scene.hero, scene.friend
    parent = draw.of(("mom", "dad", "grandma", "grandpa"))
    todo, done, outcome = draw.of(RISKS)
    advice = f'"{hero.name}, do not {todo}," said {hero.his} {parent}. "You will get hurt."'
    if draw.below(2) == 0:
        return [
            f"{advice} But {hero.name} did not listen.",
            f"When nobody was looking, {hero.name} {done}. Oh no! {hero.He}"
            f" {outcome.format(his=hero.his)}. {hero.name} cried and cried.",
            f"{hero.his.capitalize()} {parent} came and took {hero.him} home. {hero.name} was sad."
            f" {hero.He} learned that it is good to listen.",
        ]
    return [
        f'{advice} "Yes, I will be careful," said {hero.name}.',
        f'Then {friend.name} came. "Come, let us {todo}!" said {friend.name}. "No," said'
        f' {hero.name}. "We will get hurt. Let us {scene.verb} with my {scene.toy}."',
        f"So they took the {scene.toy} and began to {scene.verb}. They had so much fun."
        f" {hero.his.capitalize()} {parent} was proud of {hero.him}, because {hero.he} had"
        f" listened.",
    ]


def noise(draw: Draw, scene: Scene) -> list[str]:
    """Plot: a strange noise turns out to be something nice; a twist."""
    hero, friend, spot = scene.hero, scene.friend, draw.of(SPOTS)
    return [
        f"That night, {hero.name} heard a strange noise. It came from something {spot}. Was it a"
        f" monster? {hero.name} hid and did not move.",
        f'"Who is there?" asked {hero.name}. Nobody answered. Very slowly, {hero.he} went to look'
        f" {spot}.",
        f'It was not a monster at all. It was {friend.name} with {article(scene.toy)}! "Surprise!"'
        f' said {friend.name}. "This {scene.thing} is for you." {hero.name} laughed and laughed.'
        f" They took the {scene.toy} and began to {scene.verb} until it was time for bed.",
    ]


def gift(draw: Draw, scene: Scene) -> list[str]:
    """Plot: a friend is cheered up with food and gives something back."""
    hero, friend, food = scene.hero, scene.friend, draw.of(FOODS)
    reason = draw.of(("was sick in bed", "was sad", "had no food", "was all alone"))
    return [
        f"One {draw.of(WEATHER)} day, {hero.name} heard that {friend.name} {reason}."
        f' "I will make some {food} for {friend.name}," said {hero.name}.',
        f"{hero.name} worked hard and made some {food}. Then {hero.he} walked to the house of"
        f' {friend.name}. "Hello, {friend.name}! I made this {food} for you," said {hero.name}.',
        f'{friend.name} ate the {food} and felt much better. "You are so kind," said'
        f' {friend.name}. "I have a gift for you too." It was {article(scene.toy)}.'
        f" {hero.name} loved the {scene.thing}. They were best friends forever.",
    ]


PLOTS = (lost, share, fear, warning, noise, gift)


def _story(seed: int, number: int) -> str:
    """Return story `number` of the corpus with this seed; blank lines separate its paragraphs."""
    draw = Draw(seed, number)
    scene = draw_scene(draw)
    plot = draw.of(PLOTS)
    beginning, *rest = plot(draw, scene)
    return "\n\n".join([f"{opening(draw, scene)} {beginning}", *rest])


def toy_stories(count: int, seed: int = 0) -> Iterator[str]:
    """Yield `count` stories; the same seed gives the same bytes on every machine."""
    return (_story(seed, number) for number in range(count))
