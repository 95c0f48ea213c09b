-- What programs ask without a mount (UnifiedFileHandler): files by id, by content and by what people know of
-- them; their metadata; the conversations they belong to.
--
-- A file F is a record R (0005) with 'metadata': what programs keep in the row, without the keys of exaifs.

CREATE OR REPLACE FUNCTION public.exaifs_file_records(p_bucket text, p_keys text[]) RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY INVOKER SET search_path = '' SET enable_seqscan = off SET jit = off
AS $$
BEGIN
    RETURN (
        SELECT coalesce(jsonb_agg(r.value || jsonb_build_object('metadata', coalesce((
            SELECT public.exaifs_json_object(m.metadata) - ARRAY['version', 'etag', 'write_id', 'posix', 'xattrs']
            FROM public.file_metadata m
            WHERE m.bucket = p_bucket AND m.supabase_storage_path = r.value ->> 'key'
        ), '{}')) ORDER BY r.place), '[]')
        FROM jsonb_array_elements(public.exaifs_records(p_bucket, p_keys)) WITH ORDINALITY AS r (value, place)
    );
END
$$;
COMMENT ON FUNCTION public.exaifs_file_records(text, text[]) IS
    'Internal: array of the files of those keys that exist, in the order given.';

CREATE OR REPLACE FUNCTION public.exaifs_file(p_bucket text, p_file_id text, p_key text) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SECURITY INVOKER SET search_path = '' SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    v_key text := nullif(p_key, '');
BEGIN
    IF p_file_id ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' THEN
        SELECT m.supabase_storage_path INTO v_key FROM public.file_metadata m
        WHERE m.file_id = p_file_id::uuid AND m.bucket = p_bucket;
    ELSIF v_key IS NOT NULL THEN
        PERFORM public.exaifs_ensure_row(p_bucket, v_key);
    END IF;
    RETURN public.exaifs_file_records(p_bucket, ARRAY[v_key]) -> 0;
END
$$;
COMMENT ON FUNCTION public.exaifs_file(text, text, text) IS
    'A file by its id, or by its key where no id is given, which makes its row if it has none. Returns F or null.';

CREATE OR REPLACE FUNCTION public.exaifs_annotate(p_bucket text, p_key text, p_fields text) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SECURITY INVOKER SET search_path = '' SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    v_fields jsonb := public.exaifs_json_object(p_fields::jsonb) - ARRAY['version', 'etag', 'write_id', 'posix', 'xattrs'];
    v_drop text[] := ARRAY(SELECT e.key FROM jsonb_each(v_fields) e WHERE jsonb_typeof(e.value) = 'null');
BEGIN
    IF NOT public.exaifs_ensure_row(p_bucket, p_key) THEN
        RETURN NULL;
    END IF;
    -- One statement, as in exaifs_patch. Mounts do not show these keys, so that nothing is logged.
    UPDATE public.file_metadata SET metadata = (public.exaifs_json_object(metadata) - v_drop) || (v_fields - v_drop)
    WHERE bucket = p_bucket AND supabase_storage_path = p_key;
    RETURN public.exaifs_file_records(p_bucket, ARRAY[p_key]) -> 0;
END
$$;
COMMENT ON FUNCTION public.exaifs_annotate(text, text, text) IS
    'Merges keys into the metadata of a row; null takes a key away, and the keys of exaifs stay. p_fields is JSON. Returns F, or null: no such object.';

CREATE OR REPLACE FUNCTION public.exaifs_find_content(p_bucket text, p_sha256 text, p_mime text) RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY INVOKER SET search_path = '' SET enable_seqscan = off SET jit = off
AS $$
BEGIN
    -- A hash without a write id was never compared with the bytes by who wrote them.
    RETURN jsonb_build_object('records', public.exaifs_records(p_bucket, ARRAY(
        SELECT m.supabase_storage_path FROM public.file_metadata m
        WHERE m.file_hash = p_sha256 AND m.bucket = p_bucket AND m.mime_type = p_mime AND m.metadata ? 'write_id'
        ORDER BY m.supabase_storage_path COLLATE "C" LIMIT 3
    )));
END
$$;
COMMENT ON FUNCTION public.exaifs_find_content(text, text, text) IS
    'Up to three objects with these bytes and this type: {"records": [R]}.';

CREATE OR REPLACE FUNCTION public.exaifs_list_files(
    p_bucket text, p_prefix text, p_after text, p_limit integer
) RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY INVOKER SET search_path = '' SET jit = off
AS $$
DECLARE
    v_page jsonb := public.exaifs_list_tree(p_bucket, p_prefix, p_after, p_limit);
BEGIN
    RETURN jsonb_build_object(
        'files', public.exaifs_file_records(p_bucket, ARRAY(
            SELECT r.value ->> 'key' FROM jsonb_array_elements(v_page -> 'records') WITH ORDINALITY AS r (value, place)
            WHERE r.value ->> 'key' NOT LIKE '%.emptyFolderPlaceholder' ORDER BY r.place
        )),
        'next', v_page -> 'next'
    );
END
$$;
COMMENT ON FUNCTION public.exaifs_list_files(text, text, text, integer) IS
    'A page of all files whose key starts with p_prefix, folder markers left out: {"files": [F], "next": give it as p_after, or null}.';

CREATE OR REPLACE FUNCTION public.exaifs_search_files(
    p_bucket text, p_query text, p_after text, p_limit integer
) RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY INVOKER SET search_path = '' SET jit = off
AS $$
DECLARE
    v_query text := lower(coalesce(p_query, ''));
    v_limit integer := least(greatest(coalesce(p_limit, 100), 1), 1000);
    v_keys text[];
BEGIN
    v_keys := ARRAY(
        SELECT m.supabase_storage_path FROM public.file_metadata m
        WHERE m.bucket = p_bucket AND m.supabase_storage_path COLLATE "C" > coalesce(p_after, '')
            AND m.supabase_storage_path NOT LIKE '%.emptyFolderPlaceholder' AND (
                strpos(lower(m.original_filename), v_query) > 0
                OR starts_with(lower(m.mime_type), v_query)
                OR (v_query ~ '^[0-9a-f]{4,64}$' AND starts_with(m.file_hash, v_query))
            )
        ORDER BY m.supabase_storage_path COLLATE "C" LIMIT v_limit + 1
    );
    RETURN jsonb_build_object(
        'files', public.exaifs_file_records(p_bucket, v_keys[1:v_limit]),
        'next', CASE WHEN cardinality(v_keys) > v_limit THEN v_keys[v_limit] END
    );
END
$$;
COMMENT ON FUNCTION public.exaifs_search_files(text, text, text, integer) IS
    'A page of the files whose name contains p_query, or whose MIME type or SHA-256 (4 digits or more) begins with it, without regard to case: {"files": [F], "next"}.';

-- The tables may be the project's own, with columns more or less: an id of type uuid, storage_path and
-- continuation_id are needed. Whoever links to a conversation that nobody has named before makes its row.
CREATE OR REPLACE FUNCTION public.exaifs_link_conversation(
    p_bucket text, p_file_id text, p_continuation_id text
) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SECURITY INVOKER SET search_path = ''
AS $$
DECLARE
    v_row public.file_metadata%ROWTYPE;
    v_values jsonb;
    v_columns text;
    v_file uuid;
    v_conversation text;
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
    -- Written even if it is there: so it is locked, and cannot be deleted before the link is made.
    INSERT INTO public.conversations (continuation_id) VALUES (p_continuation_id)
    ON CONFLICT (continuation_id) DO UPDATE SET continuation_id = excluded.continuation_id;

    -- Both tables name the file by the same id, unless the path was known to the conversations before.
    v_values := jsonb_build_object(
        'id', v_row.file_id, 'bucket', v_row.bucket, 'storage_path', v_row.supabase_storage_path,
        'original_name', v_row.original_filename, 'mime_type', v_row.mime_type, 'size_bytes', v_row.file_size,
        'file_type', CASE
            WHEN v_row.metadata ->> 'file_type' IN ('user_upload', 'generated', 'cache') THEN v_row.metadata ->> 'file_type'
            ELSE 'user_upload'
        END
    );
    SELECT string_agg(quote_ident(a.attname), ', ') INTO v_columns FROM pg_catalog.pg_attribute a
    WHERE a.attrelid = 'public.files'::regclass AND a.attnum > 0 AND NOT a.attisdropped AND v_values ? a.attname::text;
    EXECUTE format(
        'INSERT INTO public.files (%1$s) SELECT %1$s FROM jsonb_populate_record(NULL::public.files, $1) ON CONFLICT DO NOTHING',
        v_columns
    ) USING v_values;
    SELECT f.id INTO v_file FROM public.files f
    WHERE f.id = v_row.file_id OR (
        f.storage_path = v_row.supabase_storage_path AND coalesce(to_jsonb(f) ->> 'bucket', p_bucket) = p_bucket
    )
    ORDER BY f.id <> v_row.file_id LIMIT 1;
    BEGIN
        UPDATE public.files f SET storage_path = v_row.supabase_storage_path
        WHERE f.id = v_file AND f.storage_path <> v_row.supabase_storage_path;
    EXCEPTION WHEN unique_violation THEN NULL;  -- the path is another row's
    END;

    INSERT INTO public.conversation_files (conversation_id, file_id)
    SELECT c.id, v_file FROM public.conversations c WHERE c.continuation_id = p_continuation_id
    ON CONFLICT DO NOTHING;
    v_linked := FOUND;
    UPDATE public.file_metadata SET
        metadata = public.exaifs_json_object(metadata) || jsonb_build_object('continuation_id', p_continuation_id)
    WHERE file_id = v_row.file_id AND NOT public.exaifs_json_object(metadata) ? 'continuation_id';
    SELECT c.id::text INTO v_conversation FROM public.conversations c WHERE c.continuation_id = p_continuation_id;
    RETURN jsonb_build_object('conversation_id', v_conversation, 'linked', v_linked);
END
$$;
COMMENT ON FUNCTION public.exaifs_link_conversation(text, text, text) IS
    'Makes a file part of a conversation, whose row is made if missing. Returns {"conversation_id", "linked": false if it was before}, or null: no such file.';

SELECT public.exaifs_grant();

INSERT INTO public.exaifs_migrations (number, name) VALUES (9, 'files') ON CONFLICT DO NOTHING;
