"""The entry point that vLLM calls in each of its processes."""

CONNECTOR = "SoftPrompt"
"""The value of `kv_connector`."""


def register() -> None:
    """Register the connector with vLLM; may be called repeatedly."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    from softprompt_zoo_vllm import admission

    admission.install()
    if CONNECTOR not in KVConnectorFactory._registry:
        KVConnectorFactory.register_connector(CONNECTOR, "softprompt_zoo_vllm.connector", "SoftPromptConnector")
