from xcit.cli.fields import FIELDS
from xcit.config import dotted_names
from xcit.training.recipes import RECIPES


def test_the_names_are_those_of_all_recipes():
    found = {name for recipe in RECIPES.values() for name in dotted_names(recipe())}
    assert sorted(found) == sorted(FIELDS), "write the field that was added or renamed into src/xcit/cli/fields.py"
