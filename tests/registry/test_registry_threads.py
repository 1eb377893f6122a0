"""Threads that look up and register methods at the same time."""

import threading

from sound_plugins import check_all_work, plugin

from softprompt_zoo.registry.discovery import GROUP, Candidate


def test_threads_share_one_method(installed, registry):
    installed.offer("mixture", plugin())
    barrier = threading.Barrier(8)
    found, errors = [], []

    def work(index):
        try:
            barrier.wait()
            for turn in range(20):
                found.append(registry.lookup("mixture"))
                registry.register(plugin(), f"own{index}x{turn}")
                registry.unregister(f"own{index}x{turn}")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert len({id(method) for method in found}) == 1
    check_all_work(registry, "mixture")


def test_a_plugin_may_look_methods_up_while_it_is_imported(installed, registry):
    answer = []

    def load():
        thread = threading.Thread(target=lambda: answer.append(registry.lookup("prefix").name))
        thread.start()
        thread.join(30)
        return plugin()

    installed.methods.append(Candidate("curious", GROUP, "strangers", "1.5", load))
    check_all_work(registry, "curious")
    assert answer == ["prefix_tuning"]
