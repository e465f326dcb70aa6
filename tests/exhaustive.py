"""Tests of further cases, which `.ci/run` leaves to `-m exhaustive`.

Most of them are another case of a test that stays: one more value, loss, number
of processes, way to start them or moment of a kill. The others take minutes
each. They are for a release, and for changes of what they test.
"""

_NAMES = {
  'tests/algos/test_policy_loss.py': (
    'test_chunked_logp_equals_the_whole[12]',
  ),
  'tests/checkpoints/test_hf.py': (
    'test_cached_decoding_gives_the_reference_logits_token_by_token[deepseek_v3_yarn]',
    'test_cached_decoding_gives_the_reference_logits_token_by_token[deepseek_v3_noqlora]',
    'test_cached_decoding_gives_the_reference_logits_token_by_token[llama3]',
    'test_loss_gradients_have_hf_gradient_norms[deepseek_v3_yarn]',
    'test_loss_gradients_have_hf_gradient_norms[deepseek_v3_noqlora]',
    'test_loss_gradients_have_hf_gradient_norms[llama3]',
  ),
  'tests/cli/test_config_file.py': (
    'test_names_and_files_beside_a_folder_named_configs[checkout]',
  ),
  'tests/configs/test_grpo_hub.py': (
    'test_each_fits_its_chips[qwen2.5-0.5b]',
    'test_each_fits_its_chips[qwen2.5-1.5b]',
    'test_each_fits_its_chips[qwen2.5-math-1.5b]',
    'test_each_fits_its_chips[qwen2.5-math-7b]',
    'test_each_fits_its_chips[qwen3-0.6b]',
    'test_each_fits_its_chips[llama-3.1-8b]',
    'test_each_fits_its_chips[qwen3-8b]',
    'test_each_fits_its_chips[qwen3-1.7b]',
  ),
  'tests/launch/test_datasets_by_process.py': (
    'test_several_processes_write_the_dataset_of_one[rejection_sampling-two hosts-4]',
    'test_several_processes_write_the_dataset_of_one[label_steps-host-2]',
    'test_each_process_does_its_share[host-label_steps]',
    'test_several_processes_write_the_dataset_of_one[label_steps-global-2]',
    'test_each_process_does_its_share[global-label_steps]',
    'test_sigterm_to_one_ends_all_after_the_chunk',
    'test_a_full_disk_of_the_first_process_ends_all',
    'test_an_error_in_one_process_ends_all[grader]',
    'test_an_error_in_one_process_ends_all[sampler]',
    'test_a_pipeline_with_rejection_sampling_runs_in_two_processes',
    'test_a_pipeline_with_labelled_steps_runs_in_two_processes',
    'test_several_processes_write_the_dataset_of_one[rejection_sampling-host-2]',
    'test_each_process_does_its_share[host-rejection_sampling]',
  ),
  'tests/launch/test_info.py': ('test_info_prints_the_published_sizes[1]',),
  'tests/launch/test_processes.py': (
    'test_a_slow_host_is_named',
    'test_all_processes_go_back_to_the_last_good_checkpoint',
    'test_a_killed_process_ends_all_and_the_run_resumes_bit_equal[1]',
    'test_a_run_goes_on_in_another_number_of_processes[2 to 1]',
    'test_sigterm_to_one_saves_a_checkpoint_of_all',
    'test_a_run_goes_on_in_another_number_of_processes[1 to 2]',
    'test_both_processes_know_the_times_of_both',
    'test_a_stopped_process_ends_the_others',
    'test_two_processes_read_a_policy_as_one_does[sample-args1]',
  ),
  'tests/launch/test_rollouts_by_host.py': (
    'test_rollouts_by_host_equal_those_of_one_process[4-1-1]',
    'test_partial_rollouts_by_host_resume_bit_equal',
    'test_rollouts_by_host_equal_those_of_one_process[4-1-2]',
  ),
  'tests/launch/test_sampling_devices.py': (
    'test_they_equal_devices_that_do_both[flags0-global-1-4]',
    'test_they_equal_devices_that_do_both[flags2-global-1-4]',
    'test_they_equal_devices_that_do_both[flags3-host-4-1]',
    'test_they_equal_devices_that_do_both[flags4-global-2-2]',
  ),
  'tests/launch/test_suites_by_process.py': (
    'test_two_processes_leave_the_completions_of_one[global]',
  ),
  'tests/launch/test_scripts_hosts.py': (
    'test_a_job_that_is_stopped_is_not_queued_again',
    'test_a_job_that_meets_its_time_limit_is_queued_again',
    'test_a_slice_is_preempted_and_resumed',
    'test_a_host_goes_on_from_a_copy_of_an_earlier_session',
  ),
  'tests/model/test_attention.py': (
    'test_an_8_bit_cache_is_near[gqa]',
    'test_cached_decoding_equals_the_full_forward[gqa in fp8]',
    'test_cached_decoding_equals_the_full_forward[mqa]',
  ),
  'tests/model/test_gradients.py': (
    'test_gradient_equals_finite_differences[dense]',
  ),
  'tests/model/test_int8_weights.py': (
    'test_sampling_is_that_of_the_restored_weights[gqa-{}]',
    "test_sampling_is_that_of_the_restored_weights[gqa-{'fsdp': 2, 'tensor': 2, 'expert': 2}]",
    'test_sampling_is_that_of_the_restored_weights[mla-{}]',
  ),
  'tests/model/test_moe.py': (
    "test_expert_parallelism_is_exact[ragged-True-{'data': 4}]",
    "test_expert_parallelism_is_exact[ragged-True-{'expert': 4}]",
    "test_expert_parallelism_is_exact[ragged-True-{'tensor': 8}]",
    "test_expert_parallelism_is_exact[blocks-False-{'data': 4}]",
  ),
  'tests/model/test_mtp.py': (
    'test_every_depth_equals_the_numpy_oracle[one module, applied three times]',
  ),
  'tests/model/test_quant.py': (
    'test_a_models_gradient_in_fp8_is_the_same_on_eight_devices[simulated]',
    'test_a_model_in_fp8_is_near_and_not_the_same[gqa]',
  ),
  'tests/model/test_shared_prompt.py': (
    'test_a_shared_prompt_equals_a_prompt_per_completion[mla-blocked]',
    'test_a_shared_prompt_equals_a_prompt_per_completion[gqa-plain]',
  ),
  'tests/model/test_transformer.py': (
    'test_what_is_recomputed_changes_no_gradient[attention-gqa]',
    'test_what_is_recomputed_changes_no_gradient[block-mla]',
    'test_what_is_recomputed_changes_no_gradient[offload-gqa]',
  ),
  'tests/rewards/test_plugins.py': (
    'test_a_sample_that_fails_costs_itself_alone[import time; time.sleep(60)-took more than 2 s]',
  ),
  'tests/rollout/test_engine.py': (
    'test_a_sample_does_not_depend_on_the_sampler_s_sizes[False]',
  ),
  'tests/rollout/test_engine_devices.py': (
    'test_two_processes_of_two_devices_sample_what_one_device_does',
  ),
  'tests/rollout/test_hosts.py': (
    'test_samples_of_other_meshes_are_those_of_the_training_mesh[division0]',
  ),
  'tests/rollout/test_speculative.py': (
    'test_samples_have_the_model_s_distribution[processed]',
    'test_a_completion_that_another_session_ends_is_the_same',
    'test_blocks_hold_accepted_tokens_alone',
  ),
  'tests/runs/test_bucket_runs.py': (
    'test_processes_on_two_hosts_share_a_bucket_alone',
  ),
  'tests/runs/test_devices.py': (
    'test_devices_that_share_rows_train_as_those_that_do_not',
  ),
  'tests/runs/test_inputs.py': (
    'test_a_run_that_resumes_on_other_data_is_refused[helper.py]',
  ),
  'tests/runs/test_signals.py': (
    'test_ctrl_c_before_anything_is_saved_says_so[0.3]',
    'test_ctrl_c_before_anything_is_saved_says_so[0.0]',
    'test_sigterm_saves_one_checkpoint_and_the_same_command_goes_on[1]',
    'test_a_disk_that_metrics_fill_ends_the_run_too',
  ),
  'tests/stages/test_critic.py': (
    'test_a_shared_trunk_runs_with_every_option_of_a_rollout',
  ),
  'tests/stages/test_memory.py': (
    'test_the_prediction_is_what_the_compiler_allots[attention-dense]',
    'test_the_prediction_is_what_the_compiler_allots[attention-experts]',
    'test_the_prediction_is_what_the_compiler_allots[attention-large vocabulary]',
    'test_the_prediction_is_what_the_compiler_allots[none-dense]',
    'test_the_prediction_is_what_the_compiler_allots[none-large vocabulary]',
    'test_the_prediction_is_what_the_compiler_allots[block-experts]',
    'test_the_prediction_is_what_the_compiler_allots[block-large vocabulary]',
    'test_the_prediction_is_what_the_compiler_allots[none-MTP of three tokens]',
    'test_the_prediction_is_what_the_compiler_allots[attention-MTP of three tokens]',
  ),
  'tests/stages/test_preferences.py': (
    'test_a_run_goes_on_bit_for_bit[dpo-changes1]',
    'test_the_work_of_an_update[dpo-4]',
  ),
  'tests/stages/test_prm.py': (
    'test_every_kind_of_evaluation_runs_and_counts_its_tokens[mcts-rollout]',
    'test_every_kind_of_evaluation_runs_and_counts_its_tokens[mcts-rule]',
    'test_every_kind_of_evaluation_runs_and_counts_its_tokens[vote-step]',
  ),
  'tests/stages/test_task_runs.py': (
    'test_real_files_run_log_and_checkpoint[countdown]',
    'test_synthetic_countdown_runs',
  ),
  'tests/sweeps/test_end_to_end.py': ('test_a_sweep_that_was_ended_goes_on',),
  'tests/test_faults.py': (
    'test_a_run_that_is_killed_goes_on_to_the_same_bytes[position-2]',
    'test_a_run_that_is_killed_goes_on_to_the_same_bytes[files-2]',
    'test_a_run_that_is_killed_goes_on_to_the_same_bytes[rename-5]',
    'test_a_run_that_is_killed_goes_on_to_the_same_bytes[collection-1]',
    'test_a_fault_of_the_list_holds[full disk during a save]',
  ),
  'tests/train/test_muon.py': (
    'test_embedding_heads_norms_and_biases_have_adamw[config0]',
  ),
  'tests/train/test_packed_steps.py': (
    'test_packed_rows_are_the_update_of_one_row_a_sequence[ipo]',
    'test_packed_rows_are_the_update_of_one_row_a_sequence[robust]',
    'test_packed_rows_are_the_update_of_one_row_a_sequence[helpful]',
    'test_packed_rows_are_the_update_of_one_row_a_sequence[safe]',
    'test_eight_devices_equal_one[robust]',
    'test_eight_devices_equal_one[helpful]',
    'test_eight_devices_equal_one[safe]',
  ),
  'tests/train/test_policy_step.py': (
    "test_packed_rows_are_the_update_of_one_row_a_sample[{'loss_agg_mode': 'seq-mean-token-mean', 'importance_sampling_level': 'sequence'}]",
    "test_packed_rows_are_the_update_of_one_row_a_sample[{'policy_loss': 'cispo', 'kl_estimator': 'k2', 'kl_importance_weighted': True}]",
    "test_eight_devices_equal_one[{'data': 2, 'fsdp': 2, 'tensor': 2}]",
    "test_packed_rows_are_the_update_of_one_row_a_sample[{'loss_agg_mode': 'token-mean', 'kl_estimator': 'k1'}]",
    "test_eight_devices_equal_one[{'fsdp': 2, 'expert': 4}]",
    'test_a_poisoned_batch_changes_nothing_and_is_counted[inf]',
  ),
  'tests/train/test_sequence_axis.py': (
    'test_grouped_query_attention[_grpo]',
    "test_latent_attention_experts_and_mtp[_corpus-{'sequence': 2, 'tensor': 2, 'expert': 2}]",
    "test_latent_attention_experts_and_mtp[_corpus-{'sequence': 4, 'data': 2}]",
    "test_latent_attention_experts_and_mtp[_grpo-{'sequence': 2, 'tensor': 2, 'expert': 2}]",
    "test_latent_attention_experts_and_mtp[_ppo-{'sequence': 2, 'fsdp': 2, 'expert': 2}]",
  ),
}
IDS = frozenset(
  f'{file}::{name}' for file, names in _NAMES.items() for name in names
)
