-- One row for each object of a followed bucket: what Supabase Storage has no column for.
--
-- The columns up to updated_at are the given ones; bucket is ours. A project that has the table keeps it:
-- missing columns are added, what would refuse an object that other clients may upload is relaxed.
-- The trigger on storage.objects writes the rows (0004); mounts complete and change them (0006).

CREATE TABLE IF NOT EXISTS public.file_metadata (
    file_id uuid PRIMARY KEY DEFAULT gen_random_uuid(),  -- name of the file for ever: kept by overwrites and renames
    original_filename text NOT NULL,                     -- as a person reads it: last part of the key, =XX decoded
    file_size bigint NOT NULL,                           -- bytes, as the storage server counted them
    mime_type text,                                      -- without parameters; null: the server does not say
    supabase_storage_path text NOT NULL,                 -- key of the object in the bucket, as stored (=XX and all)
    local_cache_path text,                               -- content in the cache directory of the host that wrote it last, relative to it; null: none
    file_hash text,                                      -- SHA-256 of the bytes, 64 lower-case hex digits, by the writer's word; null: not known
    provider_file_ids jsonb DEFAULT '{}',                -- provider name: object; true for this file_hash only, emptied when the bytes change
    upload_date timestamptz DEFAULT now(),               -- when the present bytes were stored
    last_accessed timestamptz DEFAULT now(),             -- last read through a mount; written in batches, some seconds late
    access_count integer DEFAULT 0,                      -- reads through mounts; written in batches
    metadata jsonb DEFAULT '{}',                         -- see below
    created_at timestamptz DEFAULT now(),                -- of the row
    updated_at timestamptz DEFAULT now(),                -- of the row, access counters left out; written by a trigger
    bucket text NOT NULL DEFAULT 'user-files'            -- bucket of the object
);
-- Keys of metadata that exaifs writes (others belong to whoever wrote them, and stay):
--   version   version of the object that this row describes: when it is not the object's own, somebody wrote
--             past the trigger, and hash, times, attributes and provider ids of the row count for nothing
--   etag      the object's ETag at that version, with its quotes
--   write_id  names the upload that made this version; missing: not uploaded by exaifs
--   posix     {"mode": permission bits, "uid", "gid", "mtime_ns": text, "kind": "file" | "dir" | "symlink"},
--             each only if recorded; nanoseconds are text because JavaScript rounds integers above 2**53
--   xattrs    {name: base64}, the user's own extended attributes
--   continuation_id, file_type (user_upload | generated | cache)   written by the file handler

ALTER TABLE public.file_metadata
    ADD COLUMN IF NOT EXISTS bucket text NOT NULL DEFAULT 'user-files',
    ADD COLUMN IF NOT EXISTS original_filename text,
    ADD COLUMN IF NOT EXISTS file_size bigint,
    ADD COLUMN IF NOT EXISTS mime_type text,
    ADD COLUMN IF NOT EXISTS supabase_storage_path text,
    ADD COLUMN IF NOT EXISTS local_cache_path text,
    ADD COLUMN IF NOT EXISTS file_hash text,
    ADD COLUMN IF NOT EXISTS provider_file_ids jsonb DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS upload_date timestamptz DEFAULT now(),
    ADD COLUMN IF NOT EXISTS last_accessed timestamptz DEFAULT now(),
    ADD COLUMN IF NOT EXISTS access_count integer DEFAULT 0,
    ADD COLUMN IF NOT EXISTS metadata jsonb DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS created_at timestamptz DEFAULT now(),
    ADD COLUMN IF NOT EXISTS updated_at timestamptz DEFAULT now();

-- Another client's object comes without a hash, sometimes without a type, and with nothing cached.
ALTER TABLE public.file_metadata
    ALTER COLUMN file_hash DROP NOT NULL,
    ALTER COLUMN mime_type DROP NOT NULL,
    ALTER COLUMN local_cache_path DROP NOT NULL;

-- Names and keys may be longer than a varchar(255) of the project; text has no limit and costs no rewrite.
DO $$
DECLARE
    v_column text;
BEGIN
    FOR v_column IN
        SELECT a.attname FROM pg_catalog.pg_attribute a
        WHERE a.attrelid = 'public.file_metadata'::regclass
            AND a.attname IN ('original_filename', 'mime_type', 'supabase_storage_path', 'local_cache_path', 'file_hash')
            AND a.atttypid = 'character varying'::regtype AND NOT a.attisdropped
    LOOP
        BEGIN
            EXECUTE format('ALTER TABLE public.file_metadata ALTER COLUMN %I TYPE text', v_column);
        EXCEPTION WHEN OTHERS THEN
            RAISE WARNING 'exaifs: file_metadata.% stays limited in length: %', v_column, SQLERRM;
        END;
    END LOOP;
END
$$;

-- One row for each object. Of rows for the same object the newest stays; one that something else refers
-- to cannot be deleted and is set aside under a bucket name that no bucket can have.
DO $$
DECLARE
    v_file_id uuid;
BEGIN
    FOR v_file_id IN
        SELECT d.file_id FROM (
            SELECT m.file_id, row_number() OVER (
                PARTITION BY m.bucket, m.supabase_storage_path
                ORDER BY m.updated_at DESC NULLS LAST, m.upload_date DESC NULLS LAST,
                    m.created_at DESC NULLS LAST, m.file_id DESC
            ) AS place
            FROM public.file_metadata m WHERE m.supabase_storage_path IS NOT NULL
        ) d WHERE d.place > 1
    LOOP
        BEGIN
            DELETE FROM public.file_metadata WHERE file_id = v_file_id;
        EXCEPTION WHEN OTHERS THEN
            UPDATE public.file_metadata SET bucket = 'duplicate:' || v_file_id WHERE file_id = v_file_id;
        END;
    END LOOP;
END
$$;
CREATE UNIQUE INDEX IF NOT EXISTS file_metadata_bucket_path_key ON public.file_metadata (bucket, supabase_storage_path);

-- The three given indexes; then prefixes of keys, and the files of a conversation.
CREATE INDEX IF NOT EXISTS idx_file_metadata_file_hash ON public.file_metadata (file_hash);
CREATE INDEX IF NOT EXISTS idx_file_metadata_upload_date ON public.file_metadata (upload_date);
CREATE INDEX IF NOT EXISTS idx_file_metadata_last_accessed ON public.file_metadata (last_accessed);
-- (No second index begins with the bucket: a plan made while the table is empty would not know the better.)
CREATE INDEX IF NOT EXISTS file_metadata_path_c_idx ON public.file_metadata (supabase_storage_path COLLATE "C");
CREATE INDEX IF NOT EXISTS file_metadata_continuation_idx
    ON public.file_metadata ((metadata ->> 'continuation_id')) WHERE metadata ->> 'continuation_id' IS NOT NULL;

CREATE OR REPLACE FUNCTION public.exaifs_set_updated_at() RETURNS trigger
LANGUAGE plpgsql SET search_path = ''
AS $$
BEGIN
    NEW.updated_at := now();
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION public.exaifs_set_updated_at() IS 'Trigger: sets updated_at to the start of the transaction.';

-- Access counters are left out: a read is no change.
CREATE OR REPLACE TRIGGER exaifs_file_metadata_updated_at
    BEFORE UPDATE OF original_filename, file_size, mime_type, supabase_storage_path, local_cache_path, file_hash,
        provider_file_ids, upload_date, metadata, bucket
    ON public.file_metadata FOR EACH ROW EXECUTE FUNCTION public.exaifs_set_updated_at();

ALTER TABLE public.file_metadata ENABLE ROW LEVEL SECURITY;
DO $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_catalog.pg_policy p
        WHERE p.polrelid = 'public.file_metadata'::regclass AND p.polname = 'exaifs_service_role'
    ) THEN
        CREATE POLICY exaifs_service_role ON public.file_metadata FOR ALL TO service_role USING (true) WITH CHECK (true);
    END IF;
    IF EXISTS (
        SELECT FROM pg_catalog.pg_policy p
        WHERE p.polrelid = 'public.file_metadata'::regclass AND p.polname <> 'exaifs_service_role' AND 0 = ANY (p.polroles)
    ) THEN
        RAISE WARNING 'exaifs: a policy of this project opens file_metadata to every role, the anonymous key included';
    END IF;
END
$$;

INSERT INTO public.exaifs_migrations (number, name) VALUES (2, 'file_metadata') ON CONFLICT DO NOTHING;
