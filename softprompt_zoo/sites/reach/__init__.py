"""The ways to reach the attention of a stack: one class each, found when a model is tried, and kept as `Stack.reach`.

==================  ==========================================================  ===================================
Class               How keys and values get in                                  Models
==================  ==========================================================  ===================================
`ThroughInterface`  The model hands a keyword down to an attention function of  Most: gpt2, llama, BERT, T5, and
                    ours (`attention_interface`), which puts them in front.     ALBERT, whose layers share one.
`ReplacedAttention` For one call the stack runs on a view of itself (`views`),  DeBERTa-v2 and MPNet.
                    whose attention modules are ours (`own_attention`).
`ThroughCache`      For one call the stack is given a view of its cache         Bloom, Falcon, GPT-J, MPT and others
                    (`cache_view`), which shows them in front of the text's.    that attend by themselves.
`RealPositions`     Not at all: virtual tokens are real positions, embeddings   Encoders of none of these kinds.
                    in front of the text.
==================  ==========================================================  ===================================

`reaches.REACHES` lists them in the order in which `trial.stacks` tries them. The first whose `find` names an attention
module for every layer is taken, and tried once more on real words (`trial.rehearsal`); where none is, or words turn out
wrong, there is `RealPositions`, which says why, or the model is refused.

To add a way to reach a model:

1. A file here with a subclass of `reach.Reach`, or of `OnOurAttention` if the stack's config is to name our
   attention function. `find` returns one `AttentionCall` per layer. `install` makes the stack ready; `remove` undoes
   it. `enter` brings the state of one call to the attention: a `CallState`, whose `sites` have the keys and values, or
   a `KeyValueRecording`, which wants those of the text. `leave` takes out of the output what `enter` put in. `refuse`
   and `refuse_branches` name what has no place there. Everything else has a default.
2. A line in `REACHES`.

Nothing else asks how a stack is reached. The class is right if the conformance suite passes on a tiny model that needs
it (`testing/models.py`). Before a prompt is attached, real words are tried in every model, whichever way it is reached;
where they act otherwise than in the base model, the way is not taken.
"""
