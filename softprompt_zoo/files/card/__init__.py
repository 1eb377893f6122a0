"""The card of saved prompts: `README.md` in the form of the Hugging Face Hub, until its user changes it."""
