"""Tests a model before it is changed: its stacks, the ways to reach them, and whether prompts work on it.

`examination.examine` is called from outside. In it, first `stacks` finds the stacks; then `choice_of_reach` runs each
with a probe, to choose its reach; then `rehearsal` runs each as a `rehearsed_stack`, if possible only its
`leading_layers`, to compare virtual tokens made of real words with these words; last, `use_of_cache` tells whether a
lone encoder uses a cache. Findings are remembered for stacks that are `built_alike`.

The rest is also used later: `words` and `projections` compute initial keys and values with the frozen model, and a
`twin` shares the tensors of a model, but none of its modules.
"""
