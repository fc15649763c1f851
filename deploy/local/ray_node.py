"""`ray start` for a node on loopback.

Ray takes 127.0.0.1 for the machine's outer address, and then listens on every interface
(ray/_private/services.py: resolve_ip_for_localhost). Here it stays what it says.
"""

from ray._private import services


def _as_given(host: str) -> str:
    return host


services.resolve_ip_for_localhost = _as_given

if __name__ == "__main__":
    from ray.scripts.scripts import main

    main()
