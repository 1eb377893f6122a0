"""How each kind of stack handles a call: causal, an encoder alone or before a decoder, a decoder after one."""
