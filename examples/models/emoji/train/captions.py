"""The sentences of the model: background colours, training captions and the prompts it is measured with."""

COLOURS = {
    "white": (255, 255, 255),
    "black": (24, 24, 24),
    "red": (220, 50, 47),
    "orange": (245, 140, 40),
    "yellow": (250, 215, 70),
    "green": (60, 170, 80),
    "blue": (50, 110, 220),
    "purple": (140, 80, 190),
    "pink": (250, 150, 190),
    "gray": (150, 150, 150),
    "brown": (130, 85, 55),
    "cyan": (70, 200, 215),
}

# What many icons are, by their keywords.
VAGUE = ["a face", "an animal", "food", "a vehicle", "a flower", "sport"]


def with_article(noun):
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def prompt(icon, colour):
    return f"{icon['name']}, {icon['style']} style, on {with_article(colour)} background"


def caption(icon, colour, random):
    """One of many ways to say what a picture shows; 7 in 100 name only keywords, which many pictures share."""
    name, keywords, style = icon["name"], icon["keywords"], icon["style"]
    chance = random.random()
    if keywords and chance < 0.17:
        words = random.sample(keywords, min(len(keywords), random.randint(1, 3)))
        words[0] = with_article(words[0]) if random.random() < 0.5 else words[0]
        parts = words if chance < 0.07 else [name, *words]
    else:
        parts = [with_article(name) if chance < 0.5 else name]
    if random.random() < 0.95:
        parts.append(random.choice([f"{style} style", f"{style} style", style, f"{style} emoji"]))
    if colour != "white" or random.random() < 0.3:
        short = random.random() < 0.4
        parts.append(f"{colour} background" if short else f"on {with_article(colour)} background")
    return ", ".join(parts)
