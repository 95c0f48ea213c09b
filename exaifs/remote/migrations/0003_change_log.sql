-- What the trigger fills: the followed buckets, the change log, the errors it swallowed, the delete queue.

CREATE TABLE IF NOT EXISTS public.exaifs_buckets (
    bucket_id text PRIMARY KEY,                           -- storage.buckets.id; the bucket need not exist yet
    registered_at timestamptz NOT NULL DEFAULT now(),      -- for people
    trimmed_txid bigint NOT NULL DEFAULT 0,               -- with trimmed_seq: the last entry of this bucket that was trimmed;
    trimmed_seq bigint NOT NULL DEFAULT 0                 -- a cursor before (trimmed_txid, trimmed_seq) has missed something
);
COMMENT ON TABLE public.exaifs_buckets IS
    'Buckets whose objects the trigger follows. Written by exaifs_register_bucket and exaifs_trim_log.';

CREATE TABLE IF NOT EXISTS public.exaifs_log_state (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),   -- there is one row
    log_id uuid NOT NULL DEFAULT gen_random_uuid()                  -- names this log in cursors
);
COMMENT ON TABLE public.exaifs_log_state IS 'Identity of the change log. Written once, by this migration.';
INSERT INTO public.exaifs_log_state DEFAULT VALUES ON CONFLICT DO NOTHING;

CREATE TABLE IF NOT EXISTS public.exaifs_change_log (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,  -- order within a transaction; has gaps
    txid bigint NOT NULL DEFAULT pg_current_xact_id()::text::bigint,  -- transaction: what no running one can precede may be read
    bucket text NOT NULL,                                 -- storage.buckets.id
    op text NOT NULL CHECK (op IN ('put', 'delete', 'row')),  -- object there or replaced, object gone, attributes only; a move is delete and put
    key text NOT NULL,                                    -- as in storage.objects.name
    at timestamptz NOT NULL DEFAULT now()                 -- start of the transaction; for trimming, never for order
);
CREATE INDEX IF NOT EXISTS exaifs_change_log_feed_idx ON public.exaifs_change_log (bucket, txid, seq);
COMMENT ON TABLE public.exaifs_change_log IS
    'Every change of an object or its row in a followed bucket. Written by the trigger and the functions, trimmed by exaifs_trim_log.';

CREATE TABLE IF NOT EXISTS public.exaifs_trigger_errors (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,   -- counts up; the lowest are dropped first
    at timestamptz NOT NULL DEFAULT now(),                -- start of the transaction
    operation text NOT NULL,                              -- what was going on, such as 'row INSERT' or 'log DELETE'
    bucket text,                                          -- null: not about an object
    key text,                                             -- null: not about an object
    sqlstate text NOT NULL,                               -- five characters, PostgreSQL's error code
    message text NOT NULL                                 -- at most 500 characters
);
COMMENT ON TABLE public.exaifs_trigger_errors IS
    'Errors the triggers swallowed so that Storage calls succeed; the newest few hundred. Delete the rows once they are understood.';

CREATE TABLE IF NOT EXISTS public.exaifs_delete_queue (
    bucket text NOT NULL,                                 -- storage.buckets.id
    key text NOT NULL,                                    -- as in storage.objects.name
    object_version text,                                  -- the object to delete; another version is somebody's new file and stays
    reason text NOT NULL,                                 -- for people, such as 'conversation abc'
    queued_at timestamptz NOT NULL DEFAULT now(),         -- the oldest is deleted first
    PRIMARY KEY (bucket, key)
);
COMMENT ON TABLE public.exaifs_delete_queue IS
    'Objects to delete through the Storage API (SQL may not). Filled when a conversation is deleted, read by exaifs_delete_queue_list.';

CREATE OR REPLACE FUNCTION public.exaifs_note_error(
    p_operation text, p_bucket text, p_key text, p_sqlstate text, p_message text
) RETURNS void
LANGUAGE plpgsql SET search_path = ''
AS $$
DECLARE
    v_id bigint;
BEGIN
    INSERT INTO public.exaifs_trigger_errors (operation, bucket, key, sqlstate, message)
    VALUES (p_operation, p_bucket, p_key, p_sqlstate, left(p_message, 500)) RETURNING id INTO v_id;
    IF v_id % 50 = 0 THEN
        -- Skipping locked rows: two writers must not wait for each other's bookkeeping.
        DELETE FROM public.exaifs_trigger_errors WHERE id IN (
            SELECT e.id FROM public.exaifs_trigger_errors e WHERE e.id <= v_id - 200 FOR UPDATE SKIP LOCKED
        );
    END IF;
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'exaifs: % of % in %: %', p_operation, p_key, p_bucket, p_message;
END
$$;
COMMENT ON FUNCTION public.exaifs_note_error(text, text, text, text, text) IS
    'Internal: records an error that a trigger swallowed. Never raises.';

-- Deleting a conversation queues its objects: those linked to it, those whose row names it, and those in its
-- directory uploads/{continuation_id}/; but none that another conversation is linked to. BEFORE, because
-- the links are gone by cascade afterwards. Columns are read through jsonb: the tables may be the project's own.
CREATE OR REPLACE FUNCTION public.exaifs_on_conversation_delete() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ''
AS $$
DECLARE
    v_id text := to_jsonb(OLD) ->> 'id';
    v_continuation text := nullif(to_jsonb(OLD) ->> 'continuation_id', '');
BEGIN
    BEGIN
        INSERT INTO public.exaifs_delete_queue (bucket, key, object_version, reason)
        SELECT o.bucket_id, o.name, o.version, 'conversation ' || coalesce(v_continuation, v_id)
        FROM (
            SELECT coalesce(f.j ->> 'bucket', CASE f.j ->> 'file_type' WHEN 'generated' THEN 'generated-files' ELSE 'user-files' END) AS bucket,
                f.j ->> 'storage_path' AS key
            FROM public.conversation_files l
            JOIN LATERAL (SELECT to_jsonb(x) AS j FROM public.files x WHERE x.id = l.file_id) f ON true
            WHERE l.conversation_id::text = v_id
            UNION
            SELECT m.bucket, m.supabase_storage_path FROM public.file_metadata m
            WHERE m.metadata ->> 'continuation_id' = v_continuation
            UNION
            SELECT m.bucket, m.supabase_storage_path FROM public.file_metadata m
            JOIN public.exaifs_buckets b ON b.bucket_id = m.bucket
            WHERE m.supabase_storage_path COLLATE "C" >= 'uploads/' || v_continuation || '/'
                AND m.supabase_storage_path COLLATE "C" < 'uploads/' || v_continuation || '0'
        ) c
        JOIN storage.objects o ON o.bucket_id = c.bucket AND o.name = c.key
        WHERE NOT EXISTS (
            SELECT FROM public.conversation_files l
            JOIN LATERAL (SELECT to_jsonb(x) AS j FROM public.files x WHERE x.id = l.file_id) f ON true
            WHERE l.conversation_id::text <> v_id AND f.j ->> 'storage_path' = c.key
        )
        ON CONFLICT (bucket, key) DO UPDATE
            SET object_version = excluded.object_version, reason = excluded.reason, queued_at = excluded.queued_at;
    EXCEPTION WHEN OTHERS THEN
        PERFORM public.exaifs_note_error('queue conversation', NULL, coalesce(v_continuation, v_id), SQLSTATE, SQLERRM);
    END;
    BEGIN
        -- A file of this conversation only goes with it; its link goes by cascade.
        DELETE FROM public.files f
        WHERE f.id IN (SELECT l.file_id FROM public.conversation_files l WHERE l.conversation_id::text = v_id)
            AND NOT EXISTS (
                SELECT FROM public.conversation_files l WHERE l.file_id = f.id AND l.conversation_id::text <> v_id
            );
    EXCEPTION WHEN OTHERS THEN
        PERFORM public.exaifs_note_error('files of conversation', NULL, coalesce(v_continuation, v_id), SQLSTATE, SQLERRM);
    END;
    RETURN OLD;
END
$$;
COMMENT ON FUNCTION public.exaifs_on_conversation_delete() IS
    'Trigger: queues the objects of a deleted conversation for the janitor. Never raises.';

CREATE OR REPLACE TRIGGER exaifs_conversation_delete
    BEFORE DELETE ON public.conversations FOR EACH ROW EXECUTE FUNCTION public.exaifs_on_conversation_delete();

INSERT INTO public.exaifs_migrations (number, name) VALUES (3, 'change_log') ON CONFLICT DO NOTHING;
