"""The card of saved prompts: a Hugging Face Hub `README.md`, maintained until the user changes it."""
