"""How virtual tokens act on a model in one forward; above `backbone`, and independent of any method.

The model's forward builds a `call.Call`, which says which prompts each row sees. Two `hooks` on each stack of layers
take it from there. The stack's kind (`stacks`) decides where virtual tokens go relative to the text, and turns them
into a `state.CallState`. Its `reach` passes that to the attention, where keys and values of prompts meet the text's.
"""
