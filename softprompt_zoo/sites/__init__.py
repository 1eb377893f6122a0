"""How virtual tokens act on a model in one forward; above `backbone`, and knows no method.

The model's forward builds a `call.Call`: which prompts each row sees. Two `hooks` on each stack of layers take it from
there. The stack's kind (`stacks`) says where virtual tokens stand next to the text, and makes a `state.CallState` of
them. Its `reach` brings that to the attention, where keys and values of prompts meet those of the text.
"""
