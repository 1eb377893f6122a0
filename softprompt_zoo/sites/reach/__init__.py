"""The ways to reach the attention of a stack: one class each, chosen by testing the model, and kept as `Stack.reach`.

==================  ==========================================================  ===================================
Class               How keys and values get in                                  Models
==================  ==========================================================  ===================================
`ThroughInterface`  The model passes a keyword down to our attention function   Most: gpt2, llama, BERT, T5, and
                    (`attention_interface`), which puts them in front.          ALBERT, whose layers share one.
`ReplacedAttention` For one call, the stack runs on a view of itself (`views`), DeBERTa-v2 and MPNet.
                    whose attention modules are ours (`deberta_and_mpnet`).
`ThroughCache`      For one call, the stack gets a view of its cache            Bloom, Falcon, GPT-J, MPT and others
                    (`cache_view`) that shows them in front of the text's.      that compute attention themselves.
`RealPositions`     Not at all: virtual tokens are real positions, embeddings   Encoders of none of these kinds.
                    in front of the text.
==================  ==========================================================  ===================================

`reaches_to_try.REACHES` lists the first three in the order in which `trial.choice_of_reach` tries them. The first whose
`find` returns an attention module for every layer is chosen, and then tested on real words (`trial.rehearsal`). If none
is found, or the words come out wrong, `RealPositions` is used, which says why, or the model is refused.

To add a way to reach a model:

1. Add a file here with a subclass of `reach.Reach`, or of `AttentionInConfig` if the stack's config must name our
   attention function. `find` returns one `AttentionCall` per layer. `install` prepares the stack; `remove` undoes it.
   `enter` passes the state of one call to the attention: a `CallState`, whose `sites` hold the keys and values, or a
   `KeyValueRecording`, which collects those of the text. `leave` removes from the output what `enter` inserted.
   `refuse` and `refuse_branches` reject what is not possible there. Everything else has a default.
2. Add a line to `REACHES`.

No other code depends on how a stack is reached. The class is correct if the conformance suite passes on a tiny model
that needs it (`testing/models.py`). Before a prompt is attached, every model is tested on real words, however it is
reached; if they do not act as in the base model, that way is not used.
"""
