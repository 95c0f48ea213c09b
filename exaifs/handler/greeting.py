"""What the server says of the bucket, asked once."""

from __future__ import annotations

from exaifs.remote.interface import Catalog, Hello


class Greeting:
    """The first answer of `Catalog.hello`, for as long as the program runs.

    Args:
        catalog: asked when somebody first wants to know.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._hello: Hello | None = None

    async def hello(self) -> Hello:
        """Return it.

        Raises:
            BucketMissing: there is no such bucket; so that nothing in it is not the answer to a wrong name.
            RemoteError: the server, or the key.
        """
        if self._hello is None:
            self._hello = await self._catalog.hello()
        return self._hello
