"""What a call means for each kind of stack: causal, an encoder alone or in front of a decoder, a decoder after one."""
