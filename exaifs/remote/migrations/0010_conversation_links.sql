-- Files and conversations in step: what is in uploads/{continuation_id}/ belongs to that conversation, whoever
-- wrote it, and what the conversations know of a file follows its row.
--
-- It hangs on file_metadata, because every writer ends there: the trigger on storage.objects, the functions of
-- mounts where that is missing, and renames. Columns are met as in 0009: the tables may be the project's own.
-- Locks are taken in one order everywhere: object, row, conversation, files.

-- Files are looked up by path, and their links by file. Our own tables have an index by bucket and path only,
-- a project's may have none for either.
DO $$
BEGIN
    IF to_regclass('public.files') IS NOT NULL THEN
        CREATE INDEX IF NOT EXISTS exaifs_files_path_idx ON public.files (storage_path);
    END IF;
    IF to_regclass('public.conversation_files') IS NOT NULL AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_index i
        JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
        WHERE i.indrelid = to_regclass('public.conversation_files') AND a.attname = 'file_id'
    ) THEN
        CREATE INDEX exaifs_conversation_files_file_idx ON public.conversation_files (file_id);
    END IF;
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'exaifs: no index on files.storage_path or conversation_files.file_id, linking will be slow: %', SQLERRM;
END
$$;

CREATE OR REPLACE FUNCTION public.exaifs_continuation_of(p_key text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = ''
AS $$
    SELECT CASE
        WHEN p_key ~ '^uploads/[^/]+/.' AND right(p_key, 23) <> '.emptyFolderPlaceholder'
        THEN public.exaifs_decode_name(split_part(p_key, '/', 2))
    END
$$;
COMMENT ON FUNCTION public.exaifs_continuation_of(text) IS
    'Internal: the conversation in whose directory a file is, by its continuation id; null: in none, or a folder marker.';

-- The file's row in the table files, if it has one or is to get one. Both tables name a file by the same id,
-- unless the path was known to the conversations before: then that row stands for the file. Rows are handed on as
-- JSON: functions that take a table's type would keep a project from dropping its table.
CREATE OR REPLACE FUNCTION public.exaifs_file_entry(p_row jsonb, p_make boolean) RETURNS uuid
LANGUAGE plpgsql VOLATILE SECURITY INVOKER SET search_path = '' SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    v_id uuid := (p_row ->> 'file_id')::uuid;
    v_bucket text := p_row ->> 'bucket';
    v_path text := p_row ->> 'supabase_storage_path';
    v_values jsonb;
    v_columns text;
    v_file uuid;
    v_replaced uuid;
BEGIN
    SELECT f.id INTO v_file FROM public.files f WHERE f.id = v_id;
    SELECT f.id INTO v_replaced FROM public.files f
    WHERE f.storage_path = v_path AND f.id <> v_id
        AND coalesce(to_jsonb(f) ->> 'bucket', v_bucket) = v_bucket
        AND NOT EXISTS (SELECT FROM public.file_metadata m WHERE m.file_id = f.id);
    IF v_file IS NULL THEN
        v_file := v_replaced;
    ELSIF v_replaced IS NOT NULL THEN
        -- A file that had been there before: whoever knew it gets the one that took its place.
        INSERT INTO public.conversation_files (conversation_id, file_id)
        SELECT l.conversation_id, v_file FROM public.conversation_files l WHERE l.file_id = v_replaced
        ON CONFLICT DO NOTHING;
        DELETE FROM public.files f WHERE f.id = v_replaced;
    END IF;
    IF v_file IS NULL AND NOT p_make THEN
        RETURN NULL;
    END IF;

    SELECT jsonb_object_agg(v.key, v.value), string_agg(quote_ident(v.key), ', ') INTO v_values, v_columns
    FROM jsonb_each(jsonb_build_object(
        'id', coalesce(v_file, v_id), 'bucket', v_bucket, 'storage_path', v_path,
        'original_name', p_row -> 'original_filename', 'mime_type', p_row -> 'mime_type', 'size_bytes', p_row -> 'file_size',
        'file_type', CASE
            WHEN p_row #>> '{metadata,file_type}' IN ('user_upload', 'generated', 'cache') THEN p_row #>> '{metadata,file_type}'
            ELSE 'user_upload'
        END
    )) v
    JOIN pg_catalog.pg_attribute a
        ON a.attrelid = 'public.files'::regclass AND a.attname = v.key AND a.attnum > 0 AND NOT a.attisdropped;
    IF v_file IS NULL THEN
        -- A path that another file had before its row followed renames.
        UPDATE public.files f SET storage_path = m.supabase_storage_path FROM public.file_metadata m
        WHERE f.storage_path = v_path AND m.file_id = f.id AND m.bucket = v_bucket
            AND m.supabase_storage_path <> f.storage_path;
        EXECUTE format(
            'INSERT INTO public.files (%1$s) SELECT %1$s FROM jsonb_populate_record(NULL::public.files, $1) ON CONFLICT DO NOTHING',
            v_columns
        ) USING v_values;
        -- Another one, if somebody was quicker: at this path, for the same file.
        SELECT f.id INTO v_file FROM public.files f
        WHERE f.id = v_id OR (
            f.storage_path = v_path
            AND NOT EXISTS (SELECT FROM public.file_metadata m WHERE m.file_id = f.id)
        )
        ORDER BY f.id <> v_id LIMIT 1;
    ELSE
        BEGIN
            EXECUTE format(
                'UPDATE public.files f SET (%1$s) = (SELECT %1$s FROM jsonb_populate_record(NULL::public.files, $1))'
                || ' WHERE f.id = $2 AND NOT to_jsonb(f) @> $1',
                v_columns
            ) USING v_values, v_file;
        EXCEPTION WHEN unique_violation THEN NULL;  -- the path is still that of another file
        END;
    END IF;
    RETURN v_file;
END
$$;
COMMENT ON FUNCTION public.exaifs_file_entry(jsonb, boolean) IS
    'Internal: the id of the row in files that stands for a file, brought up to date; made if p_make, else null where there is none.';

-- Whoever links to a conversation that nobody has named before makes its row.
CREATE OR REPLACE FUNCTION public.exaifs_join_conversation(
    p_row jsonb, p_continuation_id text
) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY INVOKER SET search_path = '' SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    v_conversation uuid;
    v_file uuid;
BEGIN
    -- Locked, so that it cannot be deleted before the link is made; one that is being deleted is made anew.
    FOR i IN 1 .. 5 LOOP
        SELECT c.id INTO v_conversation FROM public.conversations c
        WHERE c.continuation_id = p_continuation_id FOR KEY SHARE;
        EXIT WHEN FOUND;
        INSERT INTO public.conversations (continuation_id) VALUES (p_continuation_id) ON CONFLICT DO NOTHING;
    END LOOP;
    v_file := public.exaifs_file_entry(p_row, true);
    INSERT INTO public.conversation_files (conversation_id, file_id) VALUES (v_conversation, v_file)
    ON CONFLICT DO NOTHING;
    RETURN FOUND;
END
$$;
COMMENT ON FUNCTION public.exaifs_join_conversation(jsonb, text) IS
    'Internal: makes a file part of a conversation, whose row is made if missing; false: it was before.';

CREATE OR REPLACE FUNCTION public.exaifs_leave_conversation(
    p_row jsonb, p_continuation_id text
) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY INVOKER SET search_path = '' SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    v_conversation uuid;
BEGIN
    SELECT c.id INTO v_conversation FROM public.conversations c
    WHERE c.continuation_id = p_continuation_id FOR KEY SHARE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    DELETE FROM public.conversation_files l WHERE l.conversation_id = v_conversation AND l.file_id IN (
        SELECT f.id FROM public.files f
        WHERE f.id = (p_row ->> 'file_id')::uuid OR (
            f.storage_path = p_row ->> 'supabase_storage_path'
            AND coalesce(to_jsonb(f) ->> 'bucket', p_row ->> 'bucket') = p_row ->> 'bucket'
        )
    );
    DELETE FROM public.files f
    WHERE f.id = (p_row ->> 'file_id')::uuid AND NOT EXISTS (SELECT FROM public.conversation_files l WHERE l.file_id = f.id);
END
$$;
COMMENT ON FUNCTION public.exaifs_leave_conversation(jsonb, text) IS
    'Internal: ends that a file is part of a conversation; its row in files goes when no other one has it.';

-- Before a row is written: its metadata name the conversation in whose directory the file is. A generated or
-- cache file that somebody puts into another directory is remembered as such: it is no rubbish (0011).
-- Both triggers leave alone what a role writes that may not call our functions: a project may let its users
-- write rows, but not link files to conversations by that. Objects of theirs come with the rights of 0004.
CREATE OR REPLACE FUNCTION public.exaifs_before_file() RETURNS trigger
LANGUAGE plpgsql SET search_path = ''
AS $$
DECLARE
    v_metadata jsonb;
    v_continuation text;
    v_before text;
BEGIN
    IF NOT has_function_privilege('public.exaifs_continuation_of(text)', 'EXECUTE') OR (
        TG_OP = 'UPDATE' AND NEW.supabase_storage_path = OLD.supabase_storage_path AND NEW.bucket = OLD.bucket
    ) THEN
        RETURN NEW;
    END IF;
    v_metadata := public.exaifs_json_object(NEW.metadata);
    v_continuation := public.exaifs_continuation_of(NEW.supabase_storage_path);
    IF TG_OP = 'UPDATE' THEN
        v_before := public.exaifs_continuation_of(OLD.supabase_storage_path);
        IF v_before IS DISTINCT FROM v_continuation AND v_metadata ->> 'continuation_id' = v_before THEN
            v_metadata := v_metadata - 'continuation_id';
        END IF;
        IF v_metadata ->> 'file_type' IN ('generated', 'cache') AND NOT v_metadata ? 'moved_from'
            AND regexp_replace(NEW.supabase_storage_path, '[^/]*$', '')
                <> regexp_replace(OLD.supabase_storage_path, '[^/]*$', '')
        THEN
            v_metadata := v_metadata || jsonb_build_object('moved_from', OLD.supabase_storage_path);
        END IF;
    END IF;
    IF v_continuation IS NOT NULL AND NOT v_metadata ? 'continuation_id' THEN
        v_metadata := v_metadata || jsonb_build_object('continuation_id', v_continuation);
    END IF;
    IF v_metadata <> public.exaifs_json_object(NEW.metadata) THEN
        NEW.metadata := v_metadata;
    END IF;
    RETURN NEW;
EXCEPTION WHEN OTHERS THEN
    PERFORM public.exaifs_note_error('metadata of file', NEW.bucket, NEW.supabase_storage_path, SQLSTATE, SQLERRM);
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION public.exaifs_before_file() IS
    'Trigger: keeps continuation_id and moved_from in the metadata of a row. Never raises.';

CREATE OR REPLACE FUNCTION public.exaifs_on_file() RETURNS trigger
LANGUAGE plpgsql SET search_path = ''
AS $$
DECLARE
    v_before text;
    v_after text;
    v_placed boolean := TG_OP = 'INSERT';  -- the file came to its path, or was written there
BEGIN
    IF to_regclass('public.conversation_files') IS NULL
        OR NOT has_function_privilege('public.exaifs_continuation_of(text)', 'EXECUTE')
    THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'UPDATE' THEN
        v_placed := (NEW.bucket, NEW.supabase_storage_path) IS DISTINCT FROM (OLD.bucket, OLD.supabase_storage_path)
            OR NEW.metadata ->> 'version' IS DISTINCT FROM OLD.metadata ->> 'version';
        IF NOT v_placed AND (
            (NEW.original_filename, NEW.file_size, NEW.mime_type, NEW.metadata ->> 'file_type')
            IS NOT DISTINCT FROM
            (OLD.original_filename, OLD.file_size, OLD.mime_type, OLD.metadata ->> 'file_type')
        ) THEN
            RETURN NULL;
        END IF;
    END IF;
    IF TG_OP <> 'INSERT' THEN
        v_before := public.exaifs_continuation_of(OLD.supabase_storage_path);
    END IF;
    IF TG_OP <> 'DELETE' THEN
        v_after := public.exaifs_continuation_of(NEW.supabase_storage_path);
    END IF;
    IF v_before IS NOT NULL AND v_before IS DISTINCT FROM v_after THEN
        PERFORM public.exaifs_leave_conversation(to_jsonb(OLD), v_before);
    END IF;
    IF v_after IS NOT NULL AND v_placed THEN
        PERFORM public.exaifs_join_conversation(to_jsonb(NEW), v_after);
    ELSIF TG_OP = 'UPDATE' THEN
        PERFORM public.exaifs_file_entry(to_jsonb(NEW), false);
    END IF;
    RETURN NULL;
EXCEPTION WHEN OTHERS THEN
    PERFORM public.exaifs_note_error(
        'conversation of file', coalesce(NEW.bucket, OLD.bucket),
        coalesce(NEW.supabase_storage_path, OLD.supabase_storage_path), SQLSTATE, SQLERRM
    );
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION public.exaifs_on_file() IS
    'Trigger on file_metadata: links what is written or moved into uploads/{continuation_id}/, unlinks what leaves it, keeps the row in files up to date. Never raises.';

CREATE OR REPLACE TRIGGER exaifs_before_file
    BEFORE INSERT OR UPDATE OF bucket, supabase_storage_path
    ON public.file_metadata FOR EACH ROW EXECUTE FUNCTION public.exaifs_before_file();
CREATE OR REPLACE TRIGGER exaifs_on_file
    AFTER INSERT OR DELETE OR UPDATE OF bucket, supabase_storage_path, original_filename, file_size, mime_type, metadata
    ON public.file_metadata FOR EACH ROW EXECUTE FUNCTION public.exaifs_on_file();

-- As in 0009, with the functions above: an id of type uuid, storage_path and continuation_id are needed.
CREATE OR REPLACE FUNCTION public.exaifs_link_conversation(
    p_bucket text, p_file_id text, p_continuation_id text
) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SECURITY INVOKER SET search_path = ''
AS $$
DECLARE
    v_row public.file_metadata%ROWTYPE;
    v_linked boolean;
BEGIN
    IF coalesce(p_continuation_id, '') = '' THEN
        RAISE EXCEPTION 'a continuation id is needed' USING ERRCODE = 'invalid_parameter_value';
    ELSIF p_file_id !~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' THEN
        RETURN NULL;
    END IF;
    SELECT * INTO v_row FROM public.file_metadata m
    WHERE m.file_id = p_file_id::uuid AND m.bucket = p_bucket FOR UPDATE;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    v_linked := public.exaifs_join_conversation(to_jsonb(v_row), p_continuation_id);
    UPDATE public.file_metadata SET
        metadata = public.exaifs_json_object(metadata) || jsonb_build_object('continuation_id', p_continuation_id)
    WHERE file_id = v_row.file_id AND NOT public.exaifs_json_object(metadata) ? 'continuation_id';
    RETURN jsonb_build_object(
        'conversation_id', (SELECT c.id::text FROM public.conversations c WHERE c.continuation_id = p_continuation_id),
        'linked', v_linked
    );
END
$$;
COMMENT ON FUNCTION public.exaifs_link_conversation(text, text, text) IS
    'Makes a file part of a conversation, whose row is made if missing. Returns {"conversation_id", "linked": false if it was before}, or null: no such file.';

-- What was there before this migration is linked, once: later a conversation that is gone was deleted. What
-- one that is gone already has left for the janitor is not. Rows in files learn of earlier renames.
DO $$
DECLARE
    v_row public.file_metadata%ROWTYPE;
BEGIN
    IF to_regclass('public.conversation_files') IS NULL
        OR EXISTS (SELECT FROM public.exaifs_migrations g WHERE g.number = 10)
    THEN
        RETURN;
    END IF;
    FOR v_row IN
        SELECT m.* FROM public.file_metadata m JOIN public.files f ON f.id = m.file_id
        WHERE f.storage_path <> m.supabase_storage_path
    LOOP
        PERFORM public.exaifs_file_entry(to_jsonb(v_row), false);
    END LOOP;
    FOR v_row IN
        SELECT m.* FROM public.file_metadata m
        JOIN public.exaifs_buckets b ON b.bucket_id = m.bucket
        JOIN storage.objects o ON o.bucket_id = m.bucket AND o.name = m.supabase_storage_path
        WHERE m.supabase_storage_path COLLATE "C" >= 'uploads/' AND m.supabase_storage_path COLLATE "C" < 'uploads0'
            AND public.exaifs_continuation_of(m.supabase_storage_path) IS NOT NULL
            AND NOT EXISTS (
                SELECT FROM public.exaifs_delete_queue q
                WHERE q.bucket = m.bucket AND q.key = m.supabase_storage_path
                    AND q.object_version IS NOT DISTINCT FROM o.version
            )
    LOOP
        BEGIN
            PERFORM public.exaifs_join_conversation(
                to_jsonb(v_row), public.exaifs_continuation_of(v_row.supabase_storage_path)
            );
        EXCEPTION WHEN OTHERS THEN
            PERFORM public.exaifs_note_error(
                'conversation of file', v_row.bucket, v_row.supabase_storage_path, SQLSTATE, SQLERRM
            );
        END;
    END LOOP;
END
$$;

SELECT public.exaifs_grant();

INSERT INTO public.exaifs_migrations (number, name) VALUES (10, 'conversation_links') ON CONFLICT DO NOTHING;
