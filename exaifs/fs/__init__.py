"""The file system of one mount: names, open files, and what becomes of written bytes. No kernel, no HTTP.

`filesystem` builds the parts over one `core`; `fuse` calls those of `operations`. Packages, each knowing
only those before it:

- `staged`: the writable copies of files
- `tables`: what is in use. `contact`: whether Supabase answers
- `unsent`: what Supabase does not have yet; `changes` decides what is carried out at once
- `upstream`: what Supabase tells: listings and the change feed
- `sending`: how bytes and changes get there; `writepath` puts it together
- `report`: the daemon about itself
- `operations`: what the kernel asks for
"""
