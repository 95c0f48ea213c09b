"""The file system of one mount: names, open files, and what becomes of written bytes. No kernel, no HTTP.

`filesystem` builds the parts over one `core`; `fuse` calls `namespace`, `files` and `xattrs`. By subject:

- names: `namespace`, `directories` (loads them), `listing`, `removal`, `rename`, `markers`, `rows`;
  `claims` for keys that are being changed, `xattrs` with `provider_ids`
- in use: `inodes`, `handles`, `atimes`
- written bytes, in their order: `files`, `writing`, `staging` with `digest`, `publish`, `uploads` with
  `mime`; `keeping` where they are to be sent later, `contest` and `conflicts` where another host wrote, too
- changes of names, and all that waits: `changes`, `carrier` at once, or `outbox`; then `sender`, `replay`,
  `relocation`; `adoption` after a restart. `writepath` puts these and the written bytes together
- other hosts: `feed`, `gaps`, `contact`, `invalidation`; in the background `janitor` and `counters`
- the daemon about itself: `status`, `waiting`, `virtual`
"""
