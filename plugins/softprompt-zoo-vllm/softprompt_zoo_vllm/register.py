"""The entry point that vLLM calls in each of its processes."""

CONNECTOR = "SoftPrompt"
"""What `kv_connector` says."""


def register() -> None:
    """Tell vLLM where the connector is; it may be called again."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    from softprompt_zoo_vllm import admission

    admission.install()
    if CONNECTOR not in KVConnectorFactory._registry:
        KVConnectorFactory.register_connector(CONNECTOR, "softprompt_zoo_vllm.connector", "SoftPromptConnector")
